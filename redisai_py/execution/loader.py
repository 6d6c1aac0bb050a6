"""The loader thread: imports backends, opens, warms up and closes sessions, one after the other, in order of arrival.

Opening is slow and may hold the GIL for long; here it delays no run that needs no opening, and never a reply that needs no Python. One
thread, not several: two imports of the same library at once gain nothing, and the order in which stores of one key end stays the order
in which they came.
"""

from __future__ import annotations

import os
from typing import Any

from .._shim import Shim
from ..backends import BACKENDS, backend_class
from ..backends.base import ModelSpec, Settings
from ..errors import BackendError
from ..log import current, logger
from .sessions import Opened, Sessions
from .worker import Workers, sentence

#: Set by the project's own tests only: every backend name then means a backend that needs no library (see backends/echo.py).
TEST_BACKEND = "REDISAI_TEST_BACKEND"


class _Meter:
    """Counts a library's memory in the shim's statistics."""

    def __init__(self, shim: Shim) -> None:
        self.record = shim.meter


class Loader:
    """Opens and closes sessions. Its methods run on the loader thread, `load_backend` also at start-up."""

    def __init__(self, shim: Shim, sessions: Sessions, workers: Workers, settings: Settings) -> None:
        self._shim = shim
        self._sessions = sessions
        self._workers = workers
        self._settings = settings
        self._backends: dict[str, Any] = {}

    def serve(self) -> None:
        """The loader thread: one message after the other until the server stops."""
        while True:
            try:
                if (message := self._shim.next_message()) is None:
                    return
                self._handle(message)
            except BaseException:  # whatever a library does, the next store must still be served
                message = current.about = None  # answers it, if nothing else has
                logger.exception("the loader could not finish a task")

    def _handle(self, message: Any) -> None:
        current.about = None if isinstance(message, int) else message
        if isinstance(message, int):
            self._close(message)
        elif hasattr(message, "opened"):  # not `blob`, which would be made to be thrown away
            self._open(message)
        else:
            self._answer_backend(message)

    # ---- backends -------------------------------------------------------------------------------------------------------

    def load_backend(self, name: str) -> Any:
        """Imports a backend once. Raises ImportError with the cure when its package is missing or broken."""
        if name not in self._backends:
            package = "numpy"  # all that the files of the backends import themselves
            try:
                cls = _test_backend(name) or backend_class(name)
                package = cls.package
                backend = cls.load(self._settings, _Meter(self._shim))
            except BaseException as error:  # also of a library that ends the program when it dislikes where it is
                reason = f"{error}" if isinstance(error, Exception) else sentence(error).removeprefix("ERR ")
                raise ImportError(f"Could not load {name} backend: {reason}. Install it with: pip install {package}") from error
            self._backends[name] = backend
            self._shim.backend_loaded(name, backend.version)
            logger.info("%s backend loaded from %s", name, getattr(backend, "origin", cls.package))
        return self._backends[name]

    def _answer_backend(self, request: Any) -> None:
        try:
            request.done(self.load_backend(request.name).version)
        except ImportError as error:
            logger.warning("%s", error)
            request.done(None)

    # ---- sessions -------------------------------------------------------------------------------------------------------

    def _open(self, opening: Any) -> None:
        key = opening.key
        try:
            self._workers.ensure(opening.queue)
            opened = self._open_script(opening) if opening.is_script else self._open_model(opening)
        except BackendError as error:
            logger.warning("%s could not be opened: %s", key, error)
            opening.failed(str(error))
        except ImportError as error:
            logger.warning("%s", error)
            opening.failed("ERR Could not load backend")
        except BaseException as error:
            text = sentence(error)
            logger.warning("%s could not be opened: %s", key, text.removeprefix("ERR "))
            opening.failed(text)
        else:
            self._sessions[opening.id] = opened
            opening.opened(getattr(opened.session, "inputs", ()), getattr(opened.session, "outputs", ()))

    def _open_model(self, opening: Any) -> Opened:
        if opening.backend not in self._backends:
            logger.warning("backend %s not loaded, will try loading default backend", opening.backend)
        backend = self.load_backend(opening.backend)
        spec = ModelSpec(opening.key, opening.device, tuple(opening.inputs), tuple(opening.outputs), opening.batchsize)
        session = backend.open(opening.blob, spec, self._settings)
        return Opened(session, False, backend.batch_mismatch)

    def _open_script(self, opening: Any) -> Opened:
        if "TORCH" not in self._backends:
            logger.warning("Backend TORCH not loaded, will try loading default backend")
        self.load_backend("TORCH")
        from ..scripts import ScriptSession

        source = opening.blob.decode("utf-8", "surrogateescape")
        return Opened(ScriptSession(source, opening.entry_points, opening.device, self._settings), True, "")

    def _close(self, program: int) -> None:
        opened = self._sessions.pop(program, None)
        if opened is not None:
            opened.session.close()


def _test_backend(name: str) -> Any:
    wanted = os.environ.get(TEST_BACKEND)
    if wanted not in ("echo", "fault"):
        return None
    from ..backends import echo

    logger.warning("test backend in use for %s: %s is set", name, TEST_BACKEND)
    return echo.EchoBackend if wanted == "echo" else echo.FaultBackend


assert set(BACKENDS) == {"TF", "TFLITE", "TORCH", "ONNX"}  # the shim's table (program.c) names the same four
