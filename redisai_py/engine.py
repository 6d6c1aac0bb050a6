"""The map of the Python side: what is built, which threads run, who knows whom.

    loader thread     opens, warms up and closes sessions, imports backends        execution/loader.py
    worker threads    one or more per run queue: batch -> session.run -> answer     execution/worker.py
    watchdog thread   ends runs of ONNX Runtime past their limit                    execution/watchdog.py
    flow threads      with FLOWS yes only: Python that clients send                 flows/
    helper processes  with ISOLATION process: what the two first do with libraries  isolation/

`start()` is called once by interp.c, on the thread that becomes Python's main thread, while the server waits; it returns when the workers
of the CPU queue stand ready. Nothing here runs when a command arrives: workers and loader wait inside the shim, without the GIL.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any

from . import log
from . import sandbox as sandboxes
from ._shim import Shim, connect
from .backends.base import Settings
from .execution.loader import Loader
from .execution.resident import Residents
from .execution.sessions import Sessions
from .execution.watchdog import watch
from .execution.worker import Workers

#: Seconds a thread may hold the GIL while another waits for it: a worker should not wait 5 ms for a script's Python.
SWITCH_INTERVAL = 0.0005

#: Bytes of stack per thread. Libraries recurse over graphs and the server's own limit may be small.
STACK_SIZE = 16 * 1024 * 1024


def start(capsule: object) -> None:
    """Builds the stages and starts the threads.

    Raises ImportError when a backend named as a load argument cannot be loaded: the module then refuses to load.
    """
    shim = connect(capsule)
    log.route_to_server(shim.log)
    sys.setswitchinterval(SWITCH_INTERVAL)
    threading.stack_size(STACK_SIZE)
    build(shim)


def _load(loader: Loader, eager: list[str]) -> None:
    for name in eager:
        loader.load_backend(name)


def _opener(shim: Shim, settings: Settings, sandboxed: bool) -> Any:
    """What opens models in helper processes. The import is here for the sake of servers that need none of it."""
    from .isolation.remote import RemoteOpener
    from .isolation.supervisor import Supervisor

    supervisor = Supervisor(shim, settings, stack_size=STACK_SIZE, switch_interval=SWITCH_INTERVAL, sandbox=sandboxed)
    return RemoteOpener(supervisor, shim.meter, settings.execution_timeout_ms / 1000)


def build(shim: Shim) -> Loader:
    """Starts every thread on `shim`; split from `start` so that tests can do it with a fake."""
    options = shim.settings()
    eager = options.pop("eager")
    flows, flows_timeout = options.pop("flows", False), options.pop("flows_timeout_ms", 0)
    asked, isolated = options.pop("sandbox", "no"), options.pop("isolation", "none") == "process"
    settings = Settings(**options)
    sandbox, state = sandboxes.wanted(asked, settings.allow_file_ops, isolated)
    shim.sandbox(state)
    opener = _opener(shim, settings, sandbox is not None) if isolated else None
    here = None if isolated else sandbox  # else the helpers enter one each
    if here is not None:
        log.route_to_server(sandboxes.relay(shim.log))
    sessions = Sessions(Residents(shim))
    workers = Workers(shim, sessions, settings.workers, here.enter if here else None)
    loader = Loader(shim, sessions, workers, settings, opener)
    sandboxes.inside(here, lambda: _load(loader, eager))
    for queue, _ in shim.queues():
        workers.ensure(queue)
    serve = functools.partial(sandboxes.inside, here, loader.serve)
    threading.Thread(target=serve, name="ai-loader", daemon=True).start()
    threading.Thread(target=watch, args=(shim, sessions), name="ai-watchdog", daemon=True).start()
    if flows:
        from .flows.host import start as start_flows  # a client's Python: imported only where it was asked for

        start_flows(shim, flows_timeout)
    return loader
