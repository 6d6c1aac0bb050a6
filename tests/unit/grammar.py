"""What a run command means, written down a second time: the model that the planner in C is compared with.

`plan(command, argv, world)` returns a Plan or raises RefusedError with the text a client reads. It follows the tables of the command pages
in their order and shares nothing with the C code, neither its data structures nor its way of going through the words: C numbers slots,
here a tensor is named by where it comes from.

    ("key", 3)       the tensor under the key named by argument 3
    ("set", 2)       what the third op, an AI.TENSORSET, gave
    ("out", 1, 0)    the first output of the second op
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

Origin = tuple[str, int] | tuple[str, int, int]

READS, WRITES, READS_AND_WRITES, NO_KEY = "reads", "writes", "reads and writes", "no key"


class RefusedError(Exception):
    """The command is answered with this error; nothing runs."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.text = text


def refuse(text: bytes | str) -> NoReturn:
    raise RefusedError(text if isinstance(text, bytes) else text.encode())


class World(Protocol):
    """What planning asks about keys. Each raises RefusedError."""

    def program(self, arg: int, kind: str) -> tuple[int, int] | None:
        """How many inputs and outputs the model has, None when that is not known."""

    def tensor(self, arg: int) -> None: ...
    def tensorset(self, first: int, n: int) -> None: ...
    def key(self, arg: int, access: str) -> None: ...


@dataclass
class Op:
    kind: str
    program: int | None = None
    function: bytes = b""
    keys: list[bytes] = field(default_factory=list)
    args: list[bytes] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)  # arguments that name them
    outputs: list[int] = field(default_factory=list)
    reads: list[Origin] = field(default_factory=list)
    show: frozenset[str] = frozenset()


@dataclass
class Plan:
    per_op: bool
    timeout: int = 0
    ops: list[Op] = field(default_factory=list)
    outputs: list[tuple[int, Origin]] = field(default_factory=list)


def integer(word: bytes) -> int | None:
    """Redis's own grammar of integers."""
    if not re.fullmatch(rb"0|-?[1-9][0-9]*", word):
        return None
    value = int(word)
    return value if -(2**63) <= value < 2**63 else None


def count(word: bytes | None) -> int | None:
    return None if word is None else integer(word)


class Words:
    """Arguments [first, end) of the command, read from left to right."""

    def __init__(self, argv: Sequence[bytes], first: int, end: int) -> None:
        self.argv, self.first, self.at, self.end = argv, first, first, end

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def left(self) -> int:
        return self.end - self.at

    def peek(self) -> bytes | None:
        return self.argv[self.at] if self.at < self.end else None

    def next_is(self, keyword: bytes) -> bool:
        word = self.peek()
        return word is not None and word.upper() == keyword

    def take(self) -> bytes | None:
        word = self.peek()
        self.at += 1
        return word

    def take_args(self, n: int) -> list[int]:
        taken = list(range(self.at, self.at + n))
        self.at += n
        return taken


class Planner:
    def __init__(self, world: World, in_dag: bool) -> None:
        self.world = world
        self.in_dag = in_dag
        self.timeout = 0

    # ---- what the grammars share

    def program(self, arg: int, kind: str) -> tuple[int, int] | None:
        self.world.key(arg, READS)
        return self.world.program(arg, kind)

    def lists(self, op: Op, inputs: list[int], outputs: list[int]) -> None:
        op.inputs, op.outputs = inputs, outputs
        if not self.in_dag:
            for arg in inputs:
                self.world.key(arg, READS)
            for arg in outputs:
                self.world.key(arg, WRITES)

    def timeout_of(self, word: bytes | None) -> None:
        ms = count(word)
        if ms is None or ms <= 0:
            refuse("ERR Invalid value for TIMEOUT")
        if self.in_dag:
            refuse("ERR TIMEOUT not allowed within a DAG command")
        self.timeout = ms

    # ---- the run commands

    def modelexecute(self, w: Words) -> Op:
        if len(w) < 8:
            refuse("ERR wrong number of arguments for 'AI.MODELEXECUTE' command")
        op = Op("model", program=w.first + 1)
        model = self.program(w.first + 1, "model")
        w.at = w.first + 2
        lists = []
        for side, (keyword, name) in enumerate(((b"INPUTS", "input"), (b"OUTPUTS", "output"))):
            if not w.next_is(keyword):
                refuse(f"ERR {keyword.decode()} not specified")
            w.take()
            n = count(w.take())
            if n is None:
                refuse(f"ERR Invalid argument for {name}_count")
            if n <= 0:
                refuse(f"ERR {name.capitalize()} count must be a positive integer")
            if model and n != model[side]:
                refuse(f"Number of keys given as {keyword.decode()} here does not match model definition")
            if n > w.left:
                refuse(f"ERR number of {name} keys to AI.MODELEXECUTE command does not match the number of given arguments")
            lists.append(w.take_args(n))
        self.lists(op, *lists)
        if w.left:
            word = w.take()
            if word is None or word.upper() != b"TIMEOUT":
                refuse(b"Invalid argument: " + (word or b""))
            if not w.left:
                refuse("ERR No value provided for TIMEOUT")
            self.timeout_of(w.take())
            if w.left:
                refuse(b"Invalid argument: " + (w.peek() or b""))
        return op

    def modelrun(self, w: Words) -> Op:
        if len(w) < 6:
            refuse("ERR wrong number of arguments for 'AI.MODELRUN' command")
        op = Op("model", program=w.first + 1)
        model = self.program(w.first + 1, "model")
        w.at = w.first + 2
        if w.next_is(b"TIMEOUT"):
            w.take()
            self.timeout_of(w.take())
        if not w.next_is(b"INPUTS"):
            refuse("ERR INPUTS not specified")
        w.take()
        inputs = []
        while w.left and not w.next_is(b"OUTPUTS"):
            inputs += w.take_args(1)
        w.take()
        self.lists(op, inputs, w.take_args(max(w.left, 0)))
        for side, given in (("INPUTS", op.inputs), ("OUTPUTS", op.outputs)):
            if model and len(given) != model[side == "OUTPUTS"]:
                refuse(f"Number of keys given as {side} here does not match model definition")
        return op

    def scriptexecute(self, w: Words) -> Op:
        if len(w) < 3:
            refuse("ERR wrong number of arguments for 'AI.SCRIPTEXECUTE' command")
        op = Op("script", program=w.first + 1, function=w.argv[w.first + 2])
        self.program(w.first + 1, "script")
        w.at = w.first + 3
        if not self.in_dag and not (w.next_is(b"KEYS") or w.next_is(b"INPUTS")):
            refuse("ERR KEYS or INPUTS scope must be provided first for AI.SCRIPTEXECUTE command")
        scopes: dict[str, list[int]] = {}
        while w.left:
            word = w.take() or b""
            scope = word.upper().decode("latin-1")
            if scope in ("KEYS", "INPUTS", "ARGS", "OUTPUTS"):
                if scope in scopes:
                    refuse(f"ERR Already Encountered {scope} scope in AI.SCRIPTEXECUTE command")
                scopes[scope] = w.take_args(self.scope_count(w, scope))
                if scope == "KEYS":
                    for arg in scopes[scope]:
                        self.world.key(arg, READS_AND_WRITES)
            elif scope == "TIMEOUT":
                if not w.left:
                    refuse("ERR No value provided for TIMEOUT in AI.SCRIPTEXECUTE")
                self.timeout_of(w.take())
                if w.left:
                    refuse("ERR Encountered problem parsing AI.SCRIPTEXECUTE")
            else:
                refuse(b"ERR Invalid AI.SCRIPTEXECUTE command. Unexpected argument: " + word)
        op.keys = [w.argv[arg] for arg in scopes.get("KEYS", [])]
        op.args = [w.argv[arg] for arg in scopes.get("ARGS", [])]
        self.lists(op, scopes.get("INPUTS", []), scopes.get("OUTPUTS", []))
        return op

    @staticmethod
    def scope_count(w: Words, scope: str) -> int:
        n = count(w.peek())
        if scope == "KEYS":
            if w.left < 2:
                refuse("ERR Missing arguments after KEYS keyword")
            if n is None or n <= 0:
                refuse("ERR Invalid or negative value found in number of KEYS")
            if n > w.left - 1:
                refuse("ERR Number of pre declared KEYS to be used in the command does not match the number of given arguments")
        else:
            if not w.left:
                refuse("ERR Invalid arguments provided to AI.SCRIPTEXECUTE")
            if n is None:
                refuse(f"ERR Invalid argument for {'keys' if scope == 'ARGS' else scope.lower()} count in AI.SCRIPTEXECUTE")
            if not 0 <= n <= w.left - 1:
                refuse(f"ERR number of {scope.lower()} to AI.SCRIPTEXECUTE command does not match the number of given arguments")
        w.take()
        return n

    def scriptrun(self, w: Words) -> Op:
        if len(w) < 3:
            refuse("ERR wrong number of arguments for 'AI.SCRIPTRUN' command")
        op = Op("script", program=w.first + 1, function=w.argv[w.first + 2])
        self.program(w.first + 1, "script")
        w.at = w.first + 3
        lists: dict[bytes, list[int]] = {}
        now, timeouts, dollars = b"", 0, 0
        while w.left:
            word = (w.take() or b"").upper()
            if word == b"TIMEOUT":
                if timeouts:
                    refuse("ERR Already encountered an TIMEOUT section in SCRIPTRUN")
                timeouts = 1
                self.timeout_of(w.take())
            elif word in (b"INPUTS", b"OUTPUTS"):
                if word == now:
                    refuse(f"ERR Already encountered an {word.decode()} keyword in SCRIPTRUN")
                if word == b"INPUTS" and now == b"OUTPUTS":
                    refuse("ERR Already encountered an INPUTS section in SCRIPTRUN")
                now = word
                lists.setdefault(now, [])
            elif word == b"$":
                if now != b"INPUTS":
                    refuse("ERR Encountered a variable size list of tensors outside of input section")
                if dollars:
                    refuse("ERR Already encountered a variable size list of tensors")
                dollars = 1
            elif not now:
                refuse("ERR Unrecongnized parameter to SCRIPTRUN")
            else:
                lists[now].append(w.at - 1)
        self.lists(op, lists.get(b"INPUTS", []), lists.get(b"OUTPUTS", []))
        return op

    # ---- tensors inside a DAG

    def tensorset(self, w: Words) -> Op:
        if len(w) < 4:
            refuse("wrong number of arguments for 'AI.TENSORSET' command")
        self.world.tensorset(w.first + 2, len(w) - 2)
        return Op("tensorset", outputs=[w.first + 1])

    def tensorget(self, w: Words) -> Op:
        if not 2 <= len(w) <= 4:
            refuse("wrong number of arguments for 'AI.TENSORGET' command")
        options = [word.upper() for word in w.argv[w.first + 2 : w.end]]
        if not all(option in (b"META", b"BLOB", b"VALUES") for option in options):
            refuse("ERR unsupported data format")
        if b"BLOB" in options and b"VALUES" in options:
            refuse("ERR both BLOB and VALUES specified")
        show = frozenset(option.decode() for option in options) or frozenset({"META", "BLOB"})
        return Op("tensorget", inputs=[w.first + 1], show=show)


# ---- commands with one op ------------------------------------------------------------------------------------------------------------


def plan_single(command: str, argv: Sequence[bytes], world: World) -> Plan:
    planner = Planner(world, in_dag=False)
    op = getattr(planner, command.lower())(Words(argv, 0, len(argv)))
    for arg in op.inputs:
        world.tensor(arg)
    op.reads = [("key", arg) for arg in op.inputs]
    return Plan(False, planner.timeout, [op], [(arg, ("out", 0, k)) for k, arg in enumerate(op.outputs)])


# ---- DAGs ----------------------------------------------------------------------------------------------------------------------------

NOT_IN_RUN = "%s cannot be used in a deprecated AI.DAGRUN command"
NOT_IN_EXECUTE = "Deprecated %s cannot be used in AI.DAGEXECUTE command"
READ_ONLY = "ERR %s command cannot be specified in a read-only DAG"

#: op -> command -> why it is refused there
FORBIDDEN: dict[str, dict[str, str]] = {
    "AI.MODELEXECUTE": {"DAGRUN": NOT_IN_RUN, "DAGRUN_RO": NOT_IN_RUN},
    "AI.SCRIPTEXECUTE": {"DAGRUN": NOT_IN_RUN, "DAGRUN_RO": NOT_IN_RUN, "DAGEXECUTE_RO": READ_ONLY},
    "AI.MODELRUN": {"DAGEXECUTE": NOT_IN_EXECUTE, "DAGEXECUTE_RO": NOT_IN_EXECUTE},
    "AI.SCRIPTRUN": {"DAGEXECUTE": NOT_IN_EXECUTE, "DAGEXECUTE_RO": NOT_IN_EXECUTE},
    "AI.TENSORSET": {},
    "AI.TENSORGET": {},
}


class Head:
    """The words before the first op, and where the ops are."""

    def __init__(self, command: str, argv: Sequence[bytes], world: World) -> None:
        self.argv, self.world, self.read_only = argv, world, command.endswith("_RO")
        self.loads: list[int] = []
        self.persists: list[int] = []
        self.timeout = 0
        self.ops: list[tuple[int, int]] = []
        self.seen: set[bytes] = set()
        clauses: dict[bytes, Callable[[int], int]] = {
            b"LOAD": self.load,
            b"PERSIST": self.persist,
            b"ROUTING": self.routing,
            b"TIMEOUT": self.deadline,
        }
        at = 1
        while at < len(argv):
            word = argv[at].upper()
            if word == b"|>" and at + 1 < len(argv):
                end = next((i for i in range(at + 1, len(argv)) if argv[i] == b"|>"), len(argv))
                self.ops.append((at + 1, end))
                at = end
            elif word in clauses and word not in self.seen and not self.ops:
                self.seen.add(word)
                at = clauses[word](at + 1)
            else:
                refuse(b"ERR Invalid DAG command. Unexpected argument:  " + argv[at])

    def key_count(self, at: int, clause: str) -> int:
        if len(self.argv) - at < 2:
            refuse(f"ERR missing arguments after {clause} keyword in DAG command")
        n = integer(self.argv[at])
        if n is None or n <= 0:
            refuse(f"ERR invalid or negative value found in number of keys to {clause}")
        return n

    def load(self, at: int) -> int:
        n = self.key_count(at, "LOAD")
        for arg in range(at + 1, min(at + 1 + n, len(self.argv))):
            self.world.key(arg, READS)
            self.world.tensor(arg)
            self.loads.append(arg)
        if at + 1 + n > len(self.argv):
            refuse("ERR number of keys to LOAD into DAG does not match the number of given arguments")
        return at + 1 + n

    def persist(self, at: int) -> int:
        if self.read_only:
            refuse("ERR PERSIST cannot be specified in a read-only DAG")
        n = self.key_count(at, "PERSIST")
        self.persists = list(range(at + 1, min(at + 1 + n, len(self.argv))))
        for arg in self.persists:
            self.world.key(arg, WRITES)
        if len({self.argv[arg] for arg in self.persists}) < len(self.persists):
            refuse("ERR PERSIST keys must be unique")
        if len(self.persists) < n:
            refuse("ERR number of keys to PERSIST after DAG execution does not match the number of given arguments")
        return at + 1 + n

    def routing(self, at: int) -> int:
        if at == len(self.argv):
            refuse("ERR Missing ROUTING value")
        self.world.key(at, NO_KEY)
        return at + 1

    def deadline(self, at: int) -> int:
        if at == len(self.argv):
            refuse("ERR No value provided for TIMEOUT")
        ms = integer(self.argv[at])
        if ms is None:
            refuse("ERR Invalid value for TIMEOUT")
        self.timeout = max(ms, 0)
        return at + 1


def plan_dag(command: str, argv: Sequence[bytes], world: World) -> Plan:
    execute = command.startswith("DAGEXECUTE")
    if execute and len(argv) < 6:
        refuse(f"ERR missing arguments for 'AI.{command}' command")
    if not execute and len(argv) < 4:
        refuse(f"ERR wrong number of arguments for 'AI.{command}' command")
    head = Head(command, argv, world)
    if execute and not head.seen & {b"LOAD", b"PERSIST", b"ROUTING"}:
        refuse("ERR AI.DAGEXECUTE and AI.DAGEXECUTE_RO commands must contain at least one out of ROUTING, LOAD, PERSIST keywords")
    if not head.ops:
        refuse("ERR DAG is empty")
    planner = Planner(world, in_dag=True)
    plan = Plan(True, head.timeout, [parse_op(planner, command, Words(argv, *span)) for span in head.ops])
    latest: dict[bytes, Origin] = {argv[arg]: ("key", arg) for arg in head.loads}
    for i, op in enumerate(plan.ops):
        for arg in op.inputs:
            if argv[arg] not in latest:
                refuse("ERR INPUT key cannot be found in DAG")
        op.reads = [latest[argv[arg]] for arg in op.inputs]
        for k, arg in enumerate(op.outputs):
            latest[argv[arg]] = ("set", i) if op.kind == "tensorset" else ("out", i, k)
    for arg in head.persists:
        if argv[arg] not in latest:
            refuse("ERR PERSIST key cannot be found in DAG")
        plan.outputs.append((arg, latest[argv[arg]]))
    return plan


def parse_op(planner: Planner, command: str, w: Words) -> Op:
    name = (w.peek() or b"").upper().decode("latin-1")
    if name not in FORBIDDEN:
        refuse("Unsupported command within DAG")
    if command in FORBIDDEN[name]:
        refuse(FORBIDDEN[name][command] % name)
    op: Op = getattr(planner, name.removeprefix("AI.").lower())(w)
    return op


def plan(command: str, argv: Sequence[bytes], world: World) -> Plan:
    """The plan of AI.<command>. Raises RefusedError."""
    return (plan_dag if command.startswith("DAG") else plan_single)(command, argv, world)
