"""Worker threads: take a batch, run it, answer it.

The loop is the hot path of the server. Everything that can be decided once was decided when the session opened; an exception is
caught here and nowhere below, becomes the answer of its batch, and the loop goes on.

A batch that fails in the library is run again request by request, so that one bad request does not fail its neighbours; but not when the
model itself returned the wrong number of rows, or was ended by the watchdog, which a retry would only repeat.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .._shim import Shim
from ..errors import BackendError, BatchMismatch, Terminated, sentence
from ..log import current, logger
from .sessions import Opened, Sessions

#: Errors that a retry by member would only repeat.
_FINAL = (BatchMismatch, Terminated)


class Workers:
    """The worker threads of all run queues."""

    def __init__(self, shim: Shim, sessions: Sessions, per_queue: int, prepare: Callable[[], None] | None = None) -> None:
        """`prepare` is called first on each thread."""
        self._shim = shim
        self._sessions = sessions
        self._per_queue = per_queue
        self._prepare = prepare
        self._started: dict[int, int] = {}

    def ensure(self, queue: int) -> None:
        """Starts the queue's threads that do not run yet; returns when they stand ready. Loader and start-up only.

        Raises RuntimeError when the machine allows no more threads; the next call tries again.
        """
        while self._started.get(queue, 0) < self._per_queue:
            ready = threading.Event()
            threading.Thread(target=self._serve, args=(queue, ready), name="ai-worker", daemon=True).start()
            ready.wait()
            self._started[queue] = self._started.get(queue, 0) + 1

    def _serve(self, queue: int, ready: threading.Event) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
            worker = self._shim.Worker(queue)
        finally:
            ready.set()
        pop, sessions = worker.pop, self._sessions
        while True:
            try:
                while (batch := pop()) is not None:
                    answer(batch, sessions)
                return
            except BaseException:  # those behind it still need their worker
                batch = current.about = None  # answers its requests, if nothing else has
                logger.exception("a worker could not take or answer a batch")


def answer(batch: Any, sessions: Sessions) -> None:
    """Runs a batch and answers it, whatever happens. Never raises."""
    current.about = batch
    try:
        batch.finish(_run(batch, sessions[batch.program], sessions))
    except _FINAL as error:
        batch.fail(str(error))
    except BackendError as error:
        _retry_or_fail(batch, sessions, str(error))
    except Exception as error:
        text = sentence(error)
        logger.warning("%s: a run failed: %s", batch.key, text.removeprefix("ERR "))
        _retry_or_fail(batch, sessions, text)
    except BaseException as error:  # SystemExit raised inside a library ends the request, not the worker
        batch.fail(sentence(error))


def _run(batch: Any, opened: Opened, sessions: Sessions) -> Any:
    if opened.is_script:
        from .script_host import ScriptHost

        host = ScriptHost(batch, sessions)
        return opened.session.run(batch.function, batch.inputs(), batch.keys, batch.args, batch.n_outputs, host)
    if (keep := batch.keep) is not None and hasattr(opened.session, "run_resident"):
        return opened.session.run_resident(batch.inputs(), batch.n_outputs, keep, sessions.residents)
    outputs = opened.session.run(batch.inputs(), batch.n_outputs)
    if batch.size > 1:
        _check_rows(outputs, batch.rows, opened.batch_mismatch)
    return outputs


def _check_rows(outputs: Any, rows: int, mismatch: str) -> None:
    for output in outputs:
        if output is not None and (output.ndim == 0 or output.shape[0] != rows):
            raise BatchMismatch(mismatch)


def _retry_or_fail(batch: Any, sessions: Sessions, text: str) -> None:
    if batch.size == 1:
        batch.fail(text)
        return
    for member in batch.split():
        answer(member, sessions)
