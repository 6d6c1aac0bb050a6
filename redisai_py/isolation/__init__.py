"""Sessions in processes of their own (ISOLATION process): what crashes there does not end the server.

    server process                                           helper process, one per device
    worker, loader    remote.py  <-- channel.py, memory.py -->  helper.py   the same backends, one thread per channel
    "ai-helpers"      supervisor.py: starts, watches, ends      ends with the server

1. A helper serves one device. Its workers share it, so a model is opened once for them, as in one process; devices do not share a fate.
2. A CHANNEL joins one thread of the server with one of the helper: a socket for small messages and two pieces of shared memory for
   tensors, each written by one side. The server makes the memory, nameless and sealed against shrinking: nobody else can open it, and a
   helper cannot pull it away under the server's hands. A thread of the server waits in recv(), without the GIL.
3. A helper is not trusted. Whatever it says is checked by wire.py before it is used; one that talks nonsense is killed.
4. A helper that dies after it served is started again at once, with the libraries it had loaded; models are opened again when they are
   next needed. What ran gets an error. A model that ends its helper three times in a row is left alone for a while, longer each time
   (breaker.py).
5. All helpers are started by one thread that lives as long as the server, because the kernel ties "die with your parent" to the thread
   that started the process, not to the process. Signals end in the pidfd, which no other process can inherit: Redis itself waits for any
   child whenever it saves, and may collect ours.
"""
