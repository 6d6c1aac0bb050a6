"""The loader thread: imports backends, opens, warms up and closes sessions, one after the other, in order of arrival.

Opening is slow and may hold the GIL for long; here it delays no run that needs no opening, and never a reply that needs no Python. One
thread, not several: two imports of the same library at once gain nothing, and the order in which stores of one key end stays the order
in which they came.
"""

from __future__ import annotations

from typing import Any

from .._shim import Shim
from ..backends.base import Settings
from ..errors import BackendError, sentence
from ..log import current, logger
from ..opener import Opener
from .sessions import Opened, Sessions
from .worker import Workers


class _Meter:
    """Counts a library's memory in the shim's statistics."""

    def __init__(self, shim: Shim) -> None:
        self.record = shim.meter


class Loader:
    """Opens and closes sessions. Its methods run on the loader thread, `load_backend` also at start-up.

    `opener` is what opens: an `Opener` of this process, or what speaks to one in another (`isolation.remote.RemoteOpener`).
    """

    def __init__(self, shim: Shim, sessions: Sessions, workers: Workers, settings: Settings, opener: Any = None) -> None:
        self._shim = shim
        self._sessions = sessions
        self._workers = workers
        self._opener = opener or Opener(settings, _Meter(shim))
        self._versions: dict[str, str] = {}

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

    def load_backend(self, name: str, device: str = "CPU") -> str:
        """Imports a backend once and returns its version. Raises ImportError with the cure when its package is missing or broken."""
        if name not in self._versions:
            library = self._opener.load(name, device)
            self._versions[name] = library.version
            self._shim.backend_loaded(name, library.version)
            logger.info("%s backend loaded from %s", name, library.origin)
        return self._versions[name]

    def _answer_backend(self, request: Any) -> None:
        try:
            request.done(self.load_backend(request.name))
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
        if opening.backend not in self._versions:
            logger.warning("backend %s not loaded, will try loading default backend", opening.backend)
        self.load_backend(opening.backend, opening.device)
        session, batch_mismatch = self._opener.open_model(opening)
        return Opened(session, False, batch_mismatch)

    def _open_script(self, opening: Any) -> Opened:
        if "TORCH" not in self._versions:
            logger.warning("Backend TORCH not loaded, will try loading default backend")
        self.load_backend("TORCH", opening.device)
        return Opened(self._opener.open_script(opening), True, "")

    def _close(self, program: int) -> None:
        opened = self._sessions.pop(program, None)
        if opened is not None:
            opened.session.close()
