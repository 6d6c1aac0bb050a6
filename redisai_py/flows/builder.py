"""GearsBuilder: a reader, steps, and an end: `register` for what comes, `run` for what is there.

What it makes is plain: a `Plan`. Registering and running is its source's business (source.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .readers import READERS, Reader
from .steps import STEPS, Step
from .values import GearsError

#: arguments of steps that have to be functions
_FUNCTIONS = {"function", "local", "combine"}
_MODES = ("async", "async_local", "sync")
_POLICIES = ("continue", "abort", "retry")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a flow is to do. `options`: those of its reader's registration, with their defaults."""

    reader: str
    steps: tuple[Step, ...]
    as_text: bool = True
    mode: str = "async"
    description: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """What the shim is told: what it filters by, and what it shows."""
        shown = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()}
        events = shown.pop("eventTypes", None)
        spec = {"reader": self.reader, "mode": self.mode, "description": self.description or None, "convertToStr": self.as_text}
        return {**spec, **shown, **({"events": events} if events else {})}


class Site(Protocol):
    """What a builder needs of its source."""

    def register(self, plan: Plan) -> None: ...
    def run_now(self, plan: Plan, argument: Any, options: dict[str, Any]) -> None: ...


class GearsBuilder:
    """Each step returns the builder, so that steps can be written as a chain."""

    def __init__(self, site: Site, reader: str = "KeysReader", defaultArg: Any = "*", desc: str | None = None) -> None:  # noqa: N803
        if reader not in READERS:
            raise GearsError(f"no such reader: {reader}; there are {', '.join(READERS)}")
        self._site = site
        self._name = reader
        self._argument = defaultArg
        self._description = desc or ""
        self._steps: list[Step] = []

    def __getattr__(self, name: str) -> Callable[..., GearsBuilder]:
        if name not in STEPS:
            raise AttributeError(f"a builder has no step {name}; there are {', '.join(STEPS)}")
        return lambda *arguments: self._add(name, arguments)

    def _add(self, name: str, arguments: tuple[Any, ...]) -> GearsBuilder:
        bound = inspect.signature(STEPS[name]).bind(None, None, *arguments)
        for parameter, value in bound.arguments.items():
            if parameter in _FUNCTIONS and not callable(value):
                raise GearsError(f"{name}: an argument is to be a function, not {type(value).__name__}")
        self._steps.append(Step(name, arguments))
        return self

    def run(self, arg: Any = None, convertToStr: bool = True, collect: bool = True, **options: Any) -> None:  # noqa: N803
        """Runs over what is there. Only while the source runs, and once; the source's reply holds [results, errors]."""
        reader = READERS[self._name]
        if reader.run is None:
            raise GearsError(f"{self._name} cannot be run, only registered")
        _only(options, reader.run_options, f"run() of {self._name}")
        plan = Plan(self._name, tuple(self._steps), bool(convertToStr), description=self._description)
        self._site.run_now(plan, self._argument if arg is None else arg, options)

    def register(
        self,
        prefix: Any = None,
        convertToStr: bool = True,  # noqa: N803
        collect: bool = True,
        mode: str = "async",
        onRegistered: Callable[[], Any] | None = None,  # noqa: N803
        inorder: bool = False,
        **options: Any,
    ) -> None:
        """Runs whenever the reader has something. Only while the source runs; in effect when it has ended without an exception."""
        reader = READERS[self._name]
        if reader.register is None:
            raise GearsError(f"{self._name} cannot be registered, only run")
        if prefix is not None:
            options["prefix"] = prefix
        _only(options, reader.register, f"register() of {self._name}")
        if mode not in _MODES:
            raise GearsError(f"no such mode: {mode}; there are {', '.join(_MODES)}")
        given = _checked(self._name, reader, options)
        self._site.register(Plan(self._name, tuple(self._steps), bool(convertToStr), mode, self._description, given))
        if onRegistered is not None:
            onRegistered()


def _only(options: dict[str, Any], known: Iterable[str], where: str) -> None:
    if unknown := sorted(set(options) - set(known)):
        raise GearsError(f"{where} takes no {', '.join(unknown)}")


def _checked(name: str, reader: Reader, options: dict[str, Any]) -> dict[str, Any]:
    """All options, as the rest of the package may rely on them."""
    given = {**(reader.register or {}), **options}
    for option, check in _CHECKS.items():
        if option in given:
            given[option] = check(option, given[option])
    if name == "CommandReader" and not given["trigger"]:
        raise GearsError("CommandReader: register(trigger=...) needs a name")
    return given


def _text(option: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise GearsError(f"{option} has to be a string")
    return value


def _names(option: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise GearsError(f"{option} has to be a list of strings")
    return tuple(item.lower() for item in value)


def _number(least: int) -> Callable[[str, Any], int]:
    def check(option: str, value: Any) -> int:
        if not isinstance(value, int) or value < least:
            raise GearsError(f"{option} has to be a number, {least} or more")
        return min(value, 2**31 - 1)

    return check


def _policy(option: str, value: Any) -> str:
    if value not in _POLICIES:
        raise GearsError(f"{option} has to be one of {', '.join(_POLICIES)}")
    return str(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "trigger": _text,
    "prefix": _text,
    "eventTypes": _names,
    "keyTypes": _names,
    "readValue": lambda option, value: bool(value),
    "batch": _number(1),
    "duration": _number(0),
    "onFailedPolicy": _policy,
    "onFailedRetryInterval": _number(1),
    "trimStream": lambda option, value: bool(value),
}
