"""Opens models and scripts with the libraries: what the loader thread does in this process, and a helper process does for it.

Not safe for threads: whoever owns one opens one thing at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from .backends import BACKENDS, backend_class
from .backends.base import Meter, ModelSpec, Session, Settings
from .errors import sentence
from .log import logger

#: Set by the project's own tests only: every backend name then means a backend that needs no library (see backends/echo.py).
TEST_BACKEND = "REDISAI_TEST_BACKEND"


class Library(NamedTuple):
    """A backend that is loaded: the version that INFO shows, and what it was imported from."""

    version: str
    origin: str


class Opener:
    """The backends of this process."""

    def __init__(self, settings: Settings, meter: Meter) -> None:
        self._settings = settings
        self._meter = meter
        self._backends: dict[str, Any] = {}

    def load(self, name: str, device: str = "CPU") -> Library:
        """Imports a backend once. Raises ImportError with the cure when its package is missing or broken."""
        if name not in self._backends:
            package = "numpy"  # all that the files of the backends import themselves
            try:
                cls = _test_backend(name) or backend_class(name)
                package = cls.package
                self._backends[name] = cls.load(self._settings, self._meter)
            except BaseException as error:  # also of a library that ends the program when it dislikes where it is
                reason = f"{error}" if isinstance(error, Exception) else sentence(error).removeprefix("ERR ")
                raise ImportError(f"Could not load {name} backend: {reason}. Install it with: pip install {package}") from error
        backend = self._backends[name]
        return Library(backend.version, getattr(backend, "origin", backend.package))

    def open_model(self, opening: Any) -> tuple[Session, str]:
        """A session, and the error text for outputs whose rows do not match a batch's. Raises ImportError, BackendError."""
        self.load(opening.backend)
        backend = self._backends[opening.backend]
        spec = ModelSpec(opening.key, opening.device, tuple(opening.inputs), tuple(opening.outputs), opening.batchsize)
        return backend.open(opening.blob, spec, self._settings), backend.batch_mismatch

    def open_script(self, opening: Any) -> Any:
        """A `ScriptSession`. Raises ImportError, BackendError."""
        self.load("TORCH")
        return _open_script(opening.blob, opening.entry_points, opening.device, self._settings)


def _open_script(source: bytes, entry_points: Sequence[str], device: str, settings: Settings) -> Any:
    from .scripts import ScriptSession

    return ScriptSession(source.decode("utf-8", "surrogateescape"), entry_points, device, settings)


def _test_backend(name: str) -> Any:
    wanted = os.environ.get(TEST_BACKEND)
    if wanted not in ("echo", "fault"):
        return None
    from .backends import echo

    logger.warning("test backend in use for %s: %s is set", name, TEST_BACKEND)
    return echo.EchoBackend if wanted == "echo" else echo.FaultBackend


assert set(BACKENDS) == {"TF", "TFLITE", "TORCH", "ONNX"}  # the shim's table (program.c) names the same four
