"""AI flows: Python that a client sends, run on a trigger, on a change of a key, or on an entry of a stream. Imported with FLOWS yes only.

    thread        where        does
    ai-flows      host.py      takes what the shim has for flows, and hands it on. Never runs a client's code.
    ai-flow       threads.py   a few: sources, plain functions, reads and writes of readers
    ai-flow-loop  threads.py   coroutine functions, many at a time, on one asyncio loop
    ai-clock      threads.py   ends what takes too long, and starts what is due later

1. A client's code never runs on Redis's main thread, on a worker or on the loader.
2. What a client's code does ends in one place, `running.Execution`: it answers its caller exactly once, whatever happens.
3. A flow that takes too long is answered for, then interrupted; a thread that cannot be interrupted is given up and replaced, a few times.
4. Every source has a namespace and builtins of its own. Nothing is added to `sys.modules`: `import redisAI` is answered by the importing
   source's own builtins.

Direction of knowledge: host -> source -> builder, redisai -> readers -> server -> values; all may use threads, running, steps.
"""
