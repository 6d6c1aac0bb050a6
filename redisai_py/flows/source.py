"""One source that a client sent: its namespace and builtins, what it registers, and what its run said.

The builtins are a dictionary of the source's own: Python's, and the names that flows know. Functions that the source defines find them
there wherever they run; modules that it imports have Python's own and see nothing of this.
"""

from __future__ import annotations

import builtins
import itertools
import linecache
import re
from binascii import crc_hqx
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from types import ModuleType
from typing import Any

from . import redisai
from .builder import GearsBuilder, Plan
from .readers import READERS
from .server import Server, working_for
from .steps import Pass
from .threads import Places, step_by_hand
from .values import FILE, GearsError, answer, safe_failure, text_of

OK = ("+", "OK")
ENDED = "flows are registered and run while their source runs, not later"


class Source:
    """A source while and after it runs. `add(id, plan, source)` is called for each registration."""

    def __init__(self, call: Any, shim: Any, server: Server, places: Places, add: Callable[[str, Plan, Source], None]) -> None:
        self.id: str = call.id
        self.file = f"{FILE}{call.id}>"
        self.flows: set[str] = set()  # the host's: registrations that are left
        self._call = call
        self._shim = shim
        self._server = server
        self._places = places
        self._add = add
        self._open = True
        self._said: list[Any] | None = None
        self._namespace = {"__name__": "__main__", "__file__": self.file, "__builtins__": self._builtins(redisai.make(server))}

    def _builtins(self, module: ModuleType) -> dict[str, Any]:
        builder = partial(GearsBuilder, self)
        ours = {
            "GB": builder,
            "GearsBuilder": builder,
            "execute": self._server.execute,
            "atomic": self._server.atomic,
            "log": self._server.log,
            "hashtag": partial(hashtag, self._server),
            "__import__": partial(_import, module),
        }
        return {**vars(builtins), **ours}

    def run(self) -> Any:
        """Runs the source on this thread. Returns what its caller reads; raises what the source raises."""
        check_requirements(text_of(word) for word in self._call.argv)
        text = text_of(self._call.source)
        linecache.cache[self.file] = (len(text), None, text.splitlines(keepends=True), self.file)
        exec(compile(text, self.file, "exec", dont_inherit=True), self._namespace)
        return OK if self._said is None else self._said

    def close(self) -> None:
        """Its caller was answered: it registers and runs nothing any more."""
        self._open = False

    def forget(self) -> None:
        """Nothing of it is left that could raise."""
        linecache.cache.pop(self.file, None)

    # ---- what its builders ask ------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._open or working_for().origin is not None:
            raise GearsError(ENDED)

    def register(self, plan: Plan) -> None:
        self._check_open()
        try:
            number = self._shim.flow_register(self._call, plan.spec())
        except ValueError as error:  # the trigger is taken
            raise GearsError(str(error)) from None
        self._add(number, plan, self)

    def run_now(self, plan: Plan, argument: Any, options: dict[str, Any]) -> None:
        self._check_open()
        if working_for().restoring:
            return
        if self._said is not None:
            raise GearsError("a source can run one flow only")
        self._said = []
        reader = READERS[plan.reader].run
        assert reader is not None
        passage = Pass(self._places.call_here)
        records = step_by_hand(passage.through(plan.steps, reader(self._server, argument, options)))
        self._said = [[answer(record, plan.as_text) for record in records], [safe_failure(error) for error in passage.errors]]


def _import(module: ModuleType, name: str, *args: Any, **kwargs: Any) -> Any:
    return module if name == "redisAI" else builtins.__import__(name, *args, **kwargs)


def check_requirements(words: Iterable[str]) -> None:
    """REQUIREMENTS of a source: packages of the server's Python, none is installed here. Raises GearsError for one that is missing."""
    for requirement in words:
        name, _, wanted = requirement.partition("==")
        try:
            there = metadata.version(re.split(r"[\s<>=!~;\[]", name.strip(), maxsplit=1)[0])
        except (metadata.PackageNotFoundError, ValueError):
            raise GearsError(f"{requirement} is not installed in the server's Python; flows install nothing") from None
        if wanted and wanted.strip() != there:
            raise GearsError(f"{requirement} is asked for; the server's Python has {there}")


# ---- hashtag ----------------------------------------------------------------------------------------------------------------------------


def hashtag(server: Server) -> str:
    """A text for `{...}` in names of keys that this node serves: of the lowest slot that it has; of slot 0 without a cluster."""
    return tag_of(_lowest_slot(server))


def _lowest_slot(server: Server) -> int:
    own, ranges = server.read("CLUSTER", "MYID"), server.read("CLUSTER", "SLOTS")
    if not isinstance(own, bytes) or not isinstance(ranges, list):
        return 0
    return min((first for first, _, master, *_ in ranges if master[2] == own), default=0)


def tag_of(slot: int) -> str:
    """The first of 0, 1, ... z, 00, ... whose slot it is."""
    signs = "0123456789abcdefghijklmnopqrstuvwxyz"
    for length in itertools.count(1):
        for letters in itertools.product(signs, repeat=length):
            tag = "".join(letters)
            if crc_hqx(tag.encode(), 0) % 16384 == slot:
                return tag
    raise AssertionError("every slot has a tag")
