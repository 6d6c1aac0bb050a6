"""What a running script may ask of the server: `redis.execute` and `redisAI.model_execute`.

Both run on the worker that runs the script. `execute` crosses into the shim, which takes the Redis lock without the GIL.
`model_execute` runs the model's session at once, past the run queues: the script already holds a worker.
"""

from __future__ import annotations

import time
from typing import Any

from ..errors import BackendError
from ..tensor import ArrayTensor
from .sessions import Sessions


class ScriptHost:
    """One call of a script."""

    __slots__ = ("_batch", "_sessions", "execute", "keep", "residents")

    def __init__(self, batch: Any, sessions: Sessions) -> None:
        self._batch = batch
        self._sessions = sessions
        self.execute = batch.execute  # (argv: list[bytes]) -> reply
        self.keep = batch.keep  # which outputs may stay on the device, see backends.base.Session
        self.residents = sessions.residents

    def model_execute(self, key: bytes, inputs: list[Any], n_outputs: int) -> list[Any]:
        """Runs the model under `key` with numpy arrays; counts in its statistics. Raises BackendError with the client's text."""
        try:
            model = self._batch.model(key)
        except LookupError as error:
            raise BackendError(str(error)) from None
        session = self._sessions[model.id].session
        started = time.monotonic_ns()
        try:
            outputs = session.run([ArrayTensor(array) for array in inputs], n_outputs)
        except BaseException:
            model.count(0, 0, True)
            raise
        first = outputs[0] if outputs and outputs[0] is not None else None
        rows = first.shape[0] if first is not None and first.ndim else 0
        model.count((time.monotonic_ns() - started) // 1000, rows, False)
        return list(outputs)
