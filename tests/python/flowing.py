"""What tests of flows share: a host over a fake shim, and how a source is sent and a trigger pulled."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

from servers import PATIENCE, wait_until

from redisai_py.flows.host import Host, start
from redisai_py.testing import FakeFlowCall, FakeFlowShim

_numbers = itertools.count(1)


class Flows:
    """A host with its fake shim."""

    def __init__(self, timeout_ms: int = 0) -> None:
        self.shim = FakeFlowShim()
        self.host: Host = start(self.shim, timeout_ms)

    @property
    def keys(self) -> dict[bytes, Any]:
        keys: dict[bytes, Any] = self.shim.redis.keys
        return keys

    def empty(self) -> None:
        """Forgets registrations, keys and what was counted."""
        for number in list(self.shim.specs):
            self.drop(number)
        self.keys.clear()
        for kept in (self.shim.redis.groups, self.shim.specs, self.shim.counted, self.shim.asked, self.shim.transactions, self.shim.lines):
            kept.clear()

    def send(self, source: str, restoring: bool = False, **fields: Any) -> FakeFlowCall:
        text = textwrap.dedent(source).encode()
        number = f"s-{next(_numbers)}"
        return self.shim.post(FakeFlowCall("source", number, source=text, restoring=restoring, **fields))  # type: ignore[no-any-return]

    def execute(self, source: str, **fields: Any) -> Any:
        """What RG.PYEXECUTE is told: ("reply", value) or ("fail", text)."""
        return told(self.send(source, **fields))

    def register(self, source: str, **fields: Any) -> str:
        """Sends a source that registers one flow; its number."""
        before = set(self.shim.specs)
        assert self.execute(source, **fields) == ("reply", ("+", "OK"))
        (number,) = set(self.shim.specs) - before
        return number

    def pull(self, number: str, *args: bytes, **fields: Any) -> FakeFlowCall:
        return self.shim.post(FakeFlowCall("trigger", number, argv=[b"t", *args], **fields))  # type: ignore[no-any-return]

    def trigger(self, number: str, *args: bytes, **fields: Any) -> Any:
        return told(self.pull(number, *args, **fields))

    def ask(self, body: str, *args: bytes, asynchronous: bool = False, **options: Any) -> Any:
        """What a trigger is told whose function has this body."""
        kind = "async def" if asynchronous else "def"
        source = f"import redisAI\n{kind} f(record):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        number = self.register(source + f"GB('CommandReader').map(f).register(trigger='t{next(_numbers)}'{given})\n")
        answer = self.trigger(number, *args)
        self.drop(number)
        return answer

    def event(self, number: str, key: bytes, event: str = "hset", **fields: Any) -> FakeFlowCall:
        return self.shim.post(FakeFlowCall("event", number, key=key, event=event, **fields))  # type: ignore[no-any-return]

    def entry(self, number: str, key: bytes, *pairs: bytes) -> None:
        self.shim.redis([b"XADD", key, *pairs])
        self.shim.post(FakeFlowCall("stream", number, key=key, event="xadd"))

    def drop(self, number: str) -> None:
        self.shim.post(FakeFlowCall("drop", number))
        wait_until(lambda: number not in self.host._flows, "the drop")


def told(call: FakeFlowCall) -> Any:
    """The one answer of a call."""
    return call.answers.get(timeout=PATIENCE)
