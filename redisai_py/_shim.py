"""The one importer of `_redisai`, and what the package asks of it, so that a fake can stand in for it (`redisai_py.testing`)."""

from __future__ import annotations

from typing import Any, Protocol


class Shim(Protocol):
    """The functions of the extension module `_redisai`; its own docstrings say what they do."""

    Worker: Any

    def attach(self, capsule: object) -> None: ...
    def next_message(self) -> Any: ...
    def next_overdue(self) -> tuple[int, int, str] | None: ...
    def released(self) -> list[int]: ...
    def queues(self) -> list[tuple[int, str]]: ...
    def log(self, level: str, line: str) -> None: ...
    def meter(self, delta_bytes: int, accesses: int) -> None: ...
    def backend_loaded(self, name: str, version: str) -> None: ...
    def settings(self) -> dict[str, Any]: ...


def connect(capsule: object) -> Shim:
    """Imports the extension module and gives it the shim's functions. Raises ImportError when the two were not built together."""
    from . import _redisai

    _redisai.attach(capsule)
    shim: Shim = _redisai
    return shim
