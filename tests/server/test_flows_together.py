"""All that can happen to flows, at once: sources, triggers, events, removals, clients that leave, saves, reloads, roles, pauses."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable

import redis
from conftest import echo_model
from registered import command, in_flight, on_key, registrations
from servers import Server, wait_until

ROUNDS = 6

RUN = """
import redisAI
async def run(record):
    runner = redisAI.createModelRunner('m')
    redisAI.modelRunnerAddInput(runner, 'x', redisAI.createTensorFromValues('FLOAT', [1], [1]))
    redisAI.modelRunnerAddOutput(runner, 'y')
    redisAI.setTensorInKey('y', (await redisAI.modelRunnerRunAsync(runner))[0])
GB('CommandReader').map(run).register(trigger='run')
GB('CommandReader').map(lambda record: 1 / int(record[1])).register(trigger='share')
"""
SOURCES = [
    command("tmp"),
    command("half") + "\n1 / 0",
    on_key("k*", "execute('INCR', 'n')"),
    "GB('StreamReader').foreach(lambda record: None).register(prefix='s*')",
]


def trigger(r: redis.Redis, rng: random.Random) -> None:
    r.execute_command("RG.TRIGGER", *rng.choice([("run",), ("share", 1), ("share", 0), ("tmp", "x")]))


def register(r: redis.Redis, rng: random.Random) -> None:
    r.execute_command("RG.PYEXECUTE", rng.choice(SOURCES), *rng.choice([(), ("UNBLOCKING",)]))


def unregister(r: redis.Redis, rng: random.Random) -> None:
    extra = [row["id"] for row in registrations(r) if dict(row["args"]).get(b"trigger") not in (b"run", b"share")]
    if extra:
        r.execute_command("RG.UNREGISTER", rng.choice(extra))


def write(r: redis.Redis, rng: random.Random) -> None:
    r.set(f"k{rng.randrange(5)}", 1)
    r.xadd(f"s{rng.randrange(5)}", {"a": 1})


def leave(r: redis.Redis, rng: random.Random) -> None:
    connection = r.connection_pool.get_connection()
    connection.send_command("RG.TRIGGER", "run")
    connection.disconnect()
    r.connection_pool.release(connection)


def change_role(r: redis.Redis, rng: random.Random) -> None:
    try:
        r.execute_command("REPLICAOF", "127.0.0.1", "1")
    finally:
        r.execute_command("REPLICAOF", "NO", "ONE")


def disturb(r: redis.Redis, rng: random.Random) -> None:
    rng.choice([change_role, lambda r, rng: r.execute_command("DEBUG", "RELOAD"), lambda r, rng: r.bgsave(), pause])(r, rng)


def pause(r: redis.Redis, rng: random.Random) -> None:
    r.execute_command("CLIENT", "PAUSE", 20, "WRITE")


def test_each_command_is_answered_and_nothing_is_left_over(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=["FLOWS", "yes"])

    def repeat(action: Callable[[redis.Redis, random.Random], None], times: int, seed: int) -> None:
        rng = random.Random(seed)
        with server.client() as client:
            for _ in range(times):
                with contextlib.suppress(redis.ResponseError, redis.ConnectionError):  # refused here and now; ended by a change of role
                    action(client, rng)

    with server.client() as r:
        r.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model())
        r.execute_command("RG.PYEXECUTE", RUN)
        kept = {row["id"] for row in registrations(r)}
        work = [(trigger, 30), (trigger, 30), (register, 10), (unregister, 10), (write, 20), (leave, 10), (disturb, 3)]
        threads = [threading.Thread(target=repeat, args=(action, n * ROUNDS, seed)) for seed, (action, n) in enumerate(work)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.alive(), server.log()[-4000:]
        wait_until(lambda: in_flight(r) == 0 and r.info("ai_runtime")["ai_jobs_in_flight"] == 0, "an end of everything")
        assert kept <= {row["id"] for row in registrations(r)}
        assert r.execute_command("RG.TRIGGER", "share", 4) == [b"0.25"]
        assert {row["status"] for row in registrations(r)} <= {b"live", b"restoring"}
