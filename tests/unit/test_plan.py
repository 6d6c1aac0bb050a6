"""The planner in C against the model of it in Python (grammar.py), without a server.

For any arguments both give the same error, or the same plan; the keys that the planner names beforehand are those that it uses; and
whatever the arguments are, everything it allocated is given back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import grammar
import pytest
from compiled import SANITIZED
from grammar import NO_KEY, READS, READS_AND_WRITES, WRITES, Origin, Plan, RefusedError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from plan_native import ffi, lib

COMMANDS = ["MODELEXECUTE", "MODELRUN", "SCRIPTEXECUTE", "SCRIPTRUN", "DAGEXECUTE", "DAGEXECUTE_RO", "DAGRUN", "DAGRUN_RO"]
ACCESS = {
    lib.KEY_RO | lib.KEY_ACCESS: READS,
    lib.KEY_OW | lib.KEY_UPDATE: WRITES,
    lib.KEY_RW | lib.KEY_ACCESS | lib.KEY_UPDATE: READS_AND_WRITES,
    lib.KEY_NOT_KEY: NO_KEY,
}
KINDS = {lib.OP_MODEL: "model", lib.OP_SCRIPT: "script", lib.OP_TENSORSET: "tensorset", lib.OP_TENSORGET: "tensorget"}
SHOWN = {lib.TENSORGET_META: "META", lib.TENSORGET_BLOB: "BLOB", lib.TENSORGET_VALUES: "VALUES"}

#: Keys of the world: models with queue and counts (None: not known yet), scripts with their queue, tensors; the rest is empty.
MODELS: dict[bytes, tuple[int, tuple[int, int] | None]] = {
    b"m": (0, (1, 1)),
    b"m2": (1, (2, 1)),
    b"m12": (0, (1, 2)),
    b"mu": (1, None),
    b"INPUTS": (0, (1, 1)),
    b"": (0, (1, 1)),
}
SCRIPTS = {b"s": 0, b"s1": 1, b"OUTPUTS": 0}
TENSORS = [b"a", b"b", b"c", b"LOAD", b"PERSIST", b"|>", b"\0", b"1", b"a\nb", b"TIMEOUT"]
OTHERS = [b"wrong", b"KEYS"]
EMPTY = {"model": b"ERR model key is empty", "script": b"ERR script key is empty"}
NO_TENSOR = b"ERR tensor key is empty or in a different shard"
WRONGTYPE = b"WRONGTYPE Operation against a key holding the wrong kind of value"


def lookup(name: bytes, kind: str) -> bytes | None:
    """The error of looking up `name`, None when it is there."""
    there = {"model": name in MODELS, "script": name in SCRIPTS, "tensor": name in TENSORS}
    if there[kind]:
        return None
    return WRONGTYPE if any(there.values()) or name in OTHERS else EMPTY.get(kind, NO_TENSOR)


# ---- both sides of a comparison ----------------------------------------------------------------------------------------------------------


class Arguments:
    """The arguments as C reads them, an allocation for each."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self.words = list(words)
        self.slices = lib.unit_argv(b"".join(words), [len(word) for word in words], len(words))

    def __enter__(self) -> Arguments:
        return self

    def __exit__(self, *unused: object) -> None:
        lib.unit_argv_free(self.slices, len(self.words))


class ModelWorld:
    """What grammar.py asks. Without `knows` it knows nothing of any key, as when a command's keys are asked for."""

    def __init__(self, arguments: Arguments, knows: bool) -> None:
        self.arguments, self.knows = arguments, knows
        self.keys: list[tuple[int, str]] = []
        self.used: list[tuple[int, str]] = []

    def key(self, arg: int, access: str) -> None:
        self.keys.append((arg, access))

    def program(self, arg: int, kind: str) -> tuple[int, int] | None:
        if not self.knows:
            return None
        self._find(arg, kind)
        return MODELS[self.arguments.words[arg]][1] if kind == "model" else None

    def tensor(self, arg: int) -> None:
        if self.knows:
            self._find(arg, "tensor")

    def _find(self, arg: int, kind: str) -> None:
        self.used.append((arg, READS))
        error = lookup(self.arguments.words[arg], kind)
        if error:
            raise RefusedError(error)

    def tensorset(self, first: int, n: int) -> None:
        if not self.knows:
            return
        error = ffi.new("const char **")
        tensor = lib.tensor_parse(self.arguments.slices + first, n, ffi.NULL, error)
        if not tensor:
            raise RefusedError(ffi.string(error[0]))
        lib.tensor_unref(tensor)


class Keyspace:
    """What the C side asks: values with references that are counted."""

    words: list[bytes]
    asked: list[tuple[int, str]]
    keys: list[tuple[int, str]]

    def __init__(self) -> None:
        self.programs = {name: lib.unit_program(queue, *(counts or (-1, -1))) for name, (queue, counts) in MODELS.items()}
        self.programs |= {name: lib.unit_program(queue, -1, -1) for name, queue in SCRIPTS.items()}
        self.texts = {error: ffi.new("char[]", error) for error in (*EMPTY.values(), NO_TENSOR, WRONGTYPE)}
        self.tensor_of: dict[int, Any] = {}
        self.start([])

    def start(self, words: list[bytes]) -> None:
        self.words, self.asked, self.keys, self.tensor_of = words, [], [], {}

    def find(self, arg: int, kind: str, error: Any) -> bool:
        self.asked.append((arg, READS))
        text = lookup(self.words[arg], kind)
        if text:
            error[0] = self.texts[text]
        return text is None

    def end(self) -> None:
        for tensor in self.tensor_of.values():
            assert lib.unit_tensor_refs(tensor) == 1
            lib.tensor_unref(tensor)
        assert all(lib.unit_program_refs(program) == 1 for program in self.programs.values())


keyspace = Keyspace()


@ffi.def_extern(error=ffi.NULL)
def ask_program(arg: int, kind: int, error: Any) -> Any:
    found = keyspace.find(arg, ("model", "script")[kind], error)
    return lib.program_ref(keyspace.programs[keyspace.words[arg]]) if found else ffi.NULL


@ffi.def_extern(error=ffi.NULL)
def ask_tensor(arg: int, error: Any) -> Any:
    if not keyspace.find(arg, "tensor", error):
        return ffi.NULL
    with Arguments([b"FLOAT", b"1"]) as arguments:
        tensor = keyspace.tensor_of[arg] = lib.tensor_parse(arguments.slices, 2, ffi.NULL, ffi.new("const char **"))
    return lib.tensor_ref(tensor)


@ffi.def_extern()
def ask_key(arg: int, access: int) -> None:
    keyspace.keys.append((arg, ACCESS[access]))


def described(plan: Any) -> Plan:
    """The plan that C made, in the model's words. Checks on the way what has no words there: slots and tracks."""
    ops = [plan.ops[i] for i in range(plan.nops)]
    origins: dict[int, Origin] = {}
    filled = {int(ffi.cast("intptr_t", plan.slots[s])): s for s in range(plan.nslots) if plan.slots[s]}
    for arg, tensor in keyspace.tensor_of.items():
        origins[filled.pop(int(ffi.cast("intptr_t", tensor)))] = ("key", arg)
    for i, op in enumerate(ops):
        for k in range(op.nout):
            assert op.out[k] not in origins, "two outputs share a slot"
            origins[op.out[k]] = ("set", i) if KINDS[op.kind] == "tensorset" else ("out", i, k)
    sets = {slot for slot, origin in origins.items() if origin[0] == "set"}
    assert set(filled.values()) == sets, "what AI.TENSORSET gives is there from the start, and nothing else"
    assert set(origins) == set(range(plan.nslots))
    check_tracks(plan, ops)
    return Plan(
        bool(plan.form),
        plan.timeout_ms,
        [described_op(op, origins) for op in ops],
        [(plan.outputs[i].arg, origins[plan.outputs[i].slot]) for i in range(plan.noutputs)],
    )


def described_op(op: Any, origins: dict[int, Origin]) -> grammar.Op:
    inputs = getattr(op, "in")
    return grammar.Op(
        KINDS[op.kind],
        function=text_of(op.function),
        keys=[text_of(op.keys[i]) for i in range(op.nkeys)],
        args=[text_of(op.args[i]) for i in range(op.nargs)],
        reads=[origins[inputs[i]] for i in range(op.nin)],
        show=frozenset(word for bit, word in SHOWN.items() if op.show & bit) if op.kind == lib.OP_TENSORGET else frozenset(),
    )


def text_of(s: Any) -> bytes:
    return bytes(ffi.buffer(s.p, s.n)) if s.p else b""


def check_tracks(plan: Any, ops: list[Any]) -> None:
    """One track per device, its ops in text order."""
    wanted: dict[int, list[int]] = {}
    for i, op in enumerate(ops):
        if op.program:
            wanted.setdefault(lib.unit_queue_of(op.program), []).append(i)
    found = {}
    first = int(ffi.cast("intptr_t", plan.ops)) if ops else 0
    for t in range(plan.ntracks):
        ops_of, op = [], plan.tracks[t].next
        while op:
            ops_of.append((int(ffi.cast("intptr_t", op)) - first) // ffi.sizeof("Op"))
            op = op.after
        found[lib.unit_track_queue(ffi.addressof(plan.tracks[t]))] = ops_of
    assert found == wanted
    assert plan.has_script == any(op.kind == lib.OP_SCRIPT for op in ops)


def comparable(plan: Plan, words: list[bytes]) -> Plan:
    """The model's plan without what C does not keep: which arguments named the inputs and outputs of an op."""
    ops = [grammar.Op(op.kind, function=op.function, keys=op.keys, args=op.args, reads=op.reads, show=op.show) for op in plan.ops]
    return Plan(plan.per_op, plan.timeout, ops, plan.outputs)


def expected(command: str, arguments: Arguments, knows: bool) -> tuple[Plan | bytes, ModelWorld]:
    world = ModelWorld(arguments, knows)
    try:
        return grammar.plan(command, arguments.words, world), world
    except RefusedError as refused:
        return refused.text, world


def c_text(text: bytes) -> bytes:
    return text.split(b"\0")[0]  # an error is a C string: a NUL in the client's word ends it


def compare(command: str, words: Sequence[bytes]) -> Plan | bytes:
    """Plans `AI.<command> words...` both ways, asks for its keys both ways, and returns what came out."""
    argv = [b"AI." + command.encode(), *words]
    number = getattr(lib, f"CMD_{command}")
    before = lib.unit_live()
    with Arguments(argv) as arguments:
        model, world = expected(command, arguments, knows=True)
        keyspace.start(argv)
        made = lib.unit_plan(number, arguments.slices, len(argv), lib.RUN)
        if made.error:
            assert model == ffi.string(made.error) or (isinstance(model, bytes) and c_text(model) == ffi.string(made.error))
        else:
            assert isinstance(model, Plan), f"refused by the model: {model!r}"
            assert described(made.plan) == comparable(model, argv)
        assert keyspace.asked == world.used
        lib.unit_plan_free(made)
        keyspace.end()

        _, walk = expected(command, arguments, knows=False)
        keyspace.start(argv)
        lib.unit_plan_free(lib.unit_plan(number, arguments.slices, len(argv), lib.WALK))
        assert keyspace.keys == walk.keys
        check_keys(model, world.used, keyspace.keys)
    assert lib.unit_live() == before, "not everything was given back"
    return model


def check_keys(model: Plan | bytes, used: list[tuple[int, str]], named: list[tuple[int, str]]) -> None:
    """What a command reads and writes was named beforehand, with the right that it takes; a command that runs names nothing else."""
    reads = {arg for arg, access in named if access in (READS, READS_AND_WRITES)}
    writes = {arg for arg, access in named if access in (WRITES, READS_AND_WRITES)}
    assert {arg for arg, _ in used} <= reads
    if isinstance(model, bytes):
        return
    outputs = {arg for arg, _ in model.outputs}
    assert outputs == {arg for arg, access in named if access == WRITES}
    assert {arg for arg, access in named if access == READS} == {arg for arg, _ in used}
    assert len(reads & writes) == sum(len(op.keys) for op in model.ops)


# ---- any arguments -----------------------------------------------------------------------------------------------------------------------

EXAMPLES = int(os.environ.get("UNIT_EXAMPLES", "200"))
thoroughly = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

NAMES = st.sampled_from(
    [b"a", b"b", b"c", b"a", b"b", b"LOAD", b"PERSIST", b"|>", b"INPUTS", b"$", b"", b"\0", b"none", b"wrong", b"1", b"a\nb"]
)
GOOD_NAMES = st.sampled_from([b"a", b"b", b"c", b"LOAD", b"PERSIST", b"\0", b"1"])
LOCAL_NAMES = st.one_of(GOOD_NAMES, st.sampled_from([b"x", b"y", b"", b"ROUTING", b"AI.MODELEXECUTE", b"TIMEOUT"]))
NUMBERS = st.sampled_from(
    [
        b"0",
        b"1",
        b"2",
        b"3",
        b"-1",
        b"01",
        b"1.0",
        b"1e3",
        b" 1",
        b"+1",
        b"-0",
        b"",
        b"x",
        b"2\0",
        b"2147483647",
        b"2147483648",
        b"4294967297",
    ]
    + [str(n).encode() for n in (2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**64 + 1)]
)
KEYWORDS = st.sampled_from(
    b"LOAD PERSIST ROUTING TIMEOUT |> INPUTS OUTPUTS KEYS ARGS $ load Inputs META BLOB VALUES".split()
    + b"AI.MODELEXECUTE AI.SCRIPTEXECUTE AI.MODELRUN AI.SCRIPTRUN AI.TENSORSET AI.TENSORGET AI.DAGRUN PING".split()
)
ANY_WORD = st.one_of(KEYWORDS, NUMBERS, NAMES, st.sampled_from([*MODELS, *SCRIPTS]), st.binary(max_size=4))
Parts = list[bytes]


def flat(parts: Iterable[Parts]) -> Iterable[bytes]:
    return chain.from_iterable(parts)


def counted(keyword: bytes, names: list[bytes]) -> Parts:
    return [keyword, str(len(names)).encode(), *names]


def some(names: st.SearchStrategy[bytes], least: int = 0, most: int = 3) -> st.SearchStrategy[list[bytes]]:
    return st.lists(names, min_size=least, max_size=most)


@st.composite
def model_words(draw: st.DrawFn, counts: bool, names: st.SearchStrategy[bytes] = NAMES) -> Parts:
    """AI.MODELEXECUTE (`counts`) or AI.MODELRUN from the key on."""
    key = draw(st.sampled_from([*MODELS, b"m", b"m2", b"m12", b"mu", b"none", b"s"]))
    nin, nout = MODELS.get(key, (0, None))[1] or (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    inputs, outputs = draw(some(names, nin, nin)), draw(some(names, nout, nout))
    tail = [b"TIMEOUT", draw(st.one_of(st.just(b"100"), NUMBERS))] if draw(st.integers(0, 5)) == 0 else []
    if counts:
        return [key, *counted(b"INPUTS", inputs), *counted(b"OUTPUTS", outputs), *tail]
    return [key, *tail, b"INPUTS", *inputs, b"OUTPUTS", *outputs]


@st.composite
def script_words(draw: st.DrawFn, counts: bool, names: st.SearchStrategy[bytes] = NAMES) -> Parts:
    """AI.SCRIPTEXECUTE (`counts`) or AI.SCRIPTRUN from the key on."""
    key, function = draw(st.sampled_from([*SCRIPTS, b"s", b"none", b"m"])), draw(st.sampled_from([b"f", b"", b"INPUTS"]))
    tail = [b"TIMEOUT", draw(st.one_of(st.just(b"100"), NUMBERS))] if draw(st.integers(0, 5)) == 0 else []
    if counts:
        scopes = [counted(word, draw(some(names, least))) for word, least in ((b"KEYS", 1), (b"INPUTS", 0), (b"ARGS", 0), (b"OUTPUTS", 0))]
        kept = [scope for scope in scopes if draw(st.integers(0, 3))]
        return [key, function, *flat(draw(st.permutations(kept)) if draw(st.booleans()) else kept), *tail]
    variadic = [b"$", *draw(some(names))] if draw(st.booleans()) else []
    return [key, function, *tail, b"INPUTS", *draw(some(names)), *variadic, b"OUTPUTS", *draw(some(names))]


@st.composite
def dag_op(draw: st.DrawFn) -> Parts:
    match draw(st.integers(0, 7)):
        case 0 | 1:
            return [b"AI.TENSORSET", draw(LOCAL_NAMES), b"FLOAT", draw(st.sampled_from([b"1", b"1", b"2", b"0"])), b"VALUES", b"1"]
        case 2 | 3:
            return [b"AI.TENSORGET", draw(LOCAL_NAMES), *draw(some(st.sampled_from([b"META", b"BLOB", b"values"]), 0, 2))]
        case 4 | 5:
            return [b"AI.MODELEXECUTE", *draw(model_words(True, LOCAL_NAMES))]
        case 6:
            return [draw(st.sampled_from([b"AI.MODELRUN", b"ai.modelrun"])), *draw(model_words(False, LOCAL_NAMES))]
        case _:
            return draw(
                st.sampled_from(
                    [
                        [b"AI.SCRIPTEXECUTE", *draw(script_words(True, LOCAL_NAMES))],
                        [b"AI.SCRIPTRUN", *draw(script_words(False, LOCAL_NAMES))],
                    ]
                )
            )


@st.composite
def dag_words(draw: st.DrawFn) -> Parts:
    clauses = [
        counted(b"LOAD", draw(some(GOOD_NAMES, 1, 4))),
        counted(b"PERSIST", draw(some(LOCAL_NAMES, 1, 3))),
        [b"ROUTING", draw(NAMES)],
        [b"TIMEOUT", draw(st.one_of(st.just(b"100"), NUMBERS))],
    ]
    kept = [clause for clause in clauses if draw(st.integers(0, 2))]
    ops = draw(st.lists(dag_op(), min_size=1, max_size=6))
    return [*flat(draw(st.permutations(kept))), *(word for op in ops for word in [b"|>", *op])]


@st.composite
def runnable_dag(draw: st.DrawFn) -> Parts:
    """A DAG that is refused by nothing: its readers read what is there."""
    loads = draw(some(GOOD_NAMES, 1, 3))
    known, words = list(loads), []
    for _ in range(draw(st.integers(1, 8))):
        name, fresh = st.sampled_from(known), draw(LOCAL_NAMES)
        key, (nin, nout) = draw(st.sampled_from([(b"m", (1, 1)), (b"m2", (2, 1)), (b"mu", (2, 3))]))
        outputs = draw(some(LOCAL_NAMES, nout, nout))
        op, written = draw(
            st.sampled_from(
                [
                    ([b"AI.TENSORSET", fresh, b"INT8", b"1"], [fresh]),
                    ([b"AI.TENSORSET", fresh, b"INT8", b"VALUES", b"|"], []),  # refused: not an integer; thinned out below
                    ([b"AI.TENSORGET", draw(name), b"META"], []),
                    ([b"AI.MODELEXECUTE", key, *counted(b"INPUTS", draw(some(name, nin, nin))), *counted(b"OUTPUTS", outputs)], outputs),
                    ([b"AI.SCRIPTEXECUTE", b"s1", b"f", *counted(b"INPUTS", draw(some(name))), *counted(b"OUTPUTS", outputs)], outputs),
                ]
            )
        )
        if op[-1] != b"|":
            words += [b"|>", *op]
            known += written
    persists = draw(st.lists(st.sampled_from(known), unique=True, max_size=3))
    head = [counted(b"LOAD", loads), *([counted(b"PERSIST", persists)] if persists else []), [b"TIMEOUT", b"10"]]
    return [*flat(draw(st.permutations(head))), *(words or [b"|>", b"AI.TENSORGET", loads[0]])]


@st.composite
def damaged(draw: st.DrawFn, words: st.SearchStrategy[Parts]) -> Parts:
    """A command with a few words lost, replaced, added, repeated or swapped."""
    found = list(draw(words))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2, 4]))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        counts = [i for i, word in enumerate(found) if word.isdigit()]
        match draw(st.integers(0, 7)):
            case 0:
                del found[at : at + 1]
            case 1:
                found[at : at + 1] = [draw(ANY_WORD)]
            case 2:
                found[at:at] = [draw(ANY_WORD)]
            case 3:
                found[at : at + 2] = reversed(found[at : at + 2])
            case 4:
                to = draw(st.integers(0, len(found)))
                found[to:to] = found[at : at + draw(st.integers(1, 4))]
            case _ if counts:  # most often, for most checks are about them
                i = draw(st.sampled_from(counts))
                near = str(int(found[i]) + draw(st.integers(-2, 2))).encode()
                found[i] = draw(st.one_of(st.just(near), NUMBERS))
    return found


def test_a_world_in_which_most_things_exist_is_asked_the_same() -> None:
    assert isinstance(compare("MODELEXECUTE", b"m INPUTS 1 a OUTPUTS 1 o".split()), Plan)


@thoroughly
@given(damaged(model_words(True)))
def test_modelexecute(words: Parts) -> None:
    compare("MODELEXECUTE", words)


@thoroughly
@given(damaged(model_words(False)))
def test_modelrun(words: Parts) -> None:
    compare("MODELRUN", words)


@thoroughly
@given(damaged(script_words(True)))
def test_scriptexecute(words: Parts) -> None:
    compare("SCRIPTEXECUTE", words)


@thoroughly
@given(damaged(script_words(False)))
def test_scriptrun(words: Parts) -> None:
    compare("SCRIPTRUN", words)


@thoroughly
@given(st.sampled_from(COMMANDS[4:]), damaged(dag_words()))
@example("DAGRUN", b"|> AI.TENSORGET a |>".split())
@example("DAGRUN", b"|> |> AI.TENSORGET a".split())
@example("DAGEXECUTE", b"LOAD 2 a |> AI.TENSORGET a".split())
def test_dags(command: str, words: Parts) -> None:
    compare(command, words)


@thoroughly
@given(runnable_dag())
def test_dags_that_run(words: Parts) -> None:
    assert isinstance(compare("DAGEXECUTE", words), Plan)


@thoroughly
@given(st.sampled_from(COMMANDS), st.lists(ANY_WORD, max_size=14))
def test_words_in_any_order(command: str, words: Parts) -> None:
    compare(command, words)


def named() -> list[tuple[bytes, str]]:
    """The keys that the last comparison's command names."""
    return [(keyspace.words[arg], access) for arg, access in keyspace.keys]


# ---- what is easily lost -----------------------------------------------------------------------------------------------------------------


#: Commands that run, with every clause.
WHOLE = [
    b"MODELEXECUTE m12 INPUTS 1 a OUTPUTS 2 o p TIMEOUT 5",
    b"MODELEXECUTE mu INPUTS 1 a OUTPUTS 1 o TIMEOUT 5",
    b"MODELRUN m TIMEOUT 5 INPUTS a OUTPUTS o",
    b"SCRIPTEXECUTE s f KEYS 1 k INPUTS 2 a b ARGS 1 x OUTPUTS 1 o TIMEOUT 5",
    b"SCRIPTEXECUTE s f INPUTS 0 ARGS 0 OUTPUTS 0",
    b"SCRIPTRUN s f INPUTS a $ b c TIMEOUT 5 OUTPUTS o",
    b"DAGEXECUTE LOAD 2 a b PERSIST 1 y TIMEOUT 5 ROUTING r |> AI.MODELEXECUTE m INPUTS 1 a OUTPUTS 1 y |> AI.TENSORGET y",
    b"DAGEXECUTE LOAD 1 a |> AI.SCRIPTEXECUTE s f INPUTS 1 a KEYS 1 k OUTPUTS 1 y |> AI.TENSORGET y VALUES",
    b"DAGEXECUTE_RO ROUTING r |> AI.TENSORSET x FLOAT 1 VALUES 2 |> AI.TENSORGET x META BLOB",
    b"DAGRUN LOAD 1 a TIMEOUT 5 |> AI.MODELRUN m INPUTS a OUTPUTS y |> AI.SCRIPTRUN s f INPUTS y $ a OUTPUTS z",
    b"DAGRUN_RO LOAD 1 a |> AI.MODELRUN m INPUTS a OUTPUTS y |> AI.TENSORGET y",
]
EDITS = b"0 1 2 3 -1 01 x 9223372036854775807 9223372036854775808 a b s m2 none wrong TIMEOUT INPUTS OUTPUTS KEYS ARGS $".split()
EDITS += b"LOAD PERSIST ROUTING |> timeout BLOB AI.MODELRUN AI.MODELEXECUTE AI.SCRIPTRUN AI.SCRIPTEXECUTE PING".split()
EDITS += [b"", b"1\0"]


@pytest.mark.parametrize("line", WHOLE, ids=lambda line: line.split()[0].decode())
def test_every_edit_of_one_word(line: bytes) -> None:
    """Each word lost, replaced by and preceded by each of many others, with and without the rest; what came last said again."""
    command, *words = line.split()
    assert isinstance(compare(command.decode(), words), Plan)
    for at in range(len(words) + 1):
        head, tail = words[:at], words[at:]
        edited = [head, head + tail[1:], words + head[-2:], words + tail[:3]]
        for edit in EDITS:
            edited += [[*head, edit, *tail], [*head, edit, *tail[1:]], [*head, edit], [*head, edit, b"a"]]
        for variant in edited:
            compare(command.decode(), variant)


def test_a_local_name_that_is_a_keyword_hides_no_key() -> None:
    """A user who may read a:* shall not run a model of another name because a local tensor is called LOAD or |>."""
    sets = b"|> AI.TENSORSET LOAD FLOAT 1 |> AI.TENSORSET ROUTING FLOAT 1".split()
    words = [*b"LOAD 1 a".split(), *sets, *b"|> AI.MODELEXECUTE m INPUTS 1 LOAD OUTPUTS 1 PERSIST".split()]
    assert isinstance(compare("DAGEXECUTE", words), Plan)
    assert named() == [(b"a", READS), (b"m", READS)]


@pytest.mark.parametrize("command", ["DAGRUN", "DAGRUN_RO"])
def test_the_programs_of_deprecated_ops_are_named_as_keys(command: str) -> None:
    words = b"LOAD 1 a |> AI.MODELRUN m INPUTS a OUTPUTS x |> AI.SCRIPTRUN s f INPUTS a OUTPUTS y".split()
    assert isinstance(compare(command, words), Plan)
    assert named() == [(b"a", READS), (b"m", READS), (b"s", READS)]


def test_the_keys_of_a_script_may_be_read_and_written() -> None:
    compare("SCRIPTEXECUTE", b"s f KEYS 2 k l INPUTS 1 a ARGS 2 k1 k2 OUTPUTS 1 o".split())
    assert named() == [(b"s", READS), (b"k", READS_AND_WRITES), (b"l", READS_AND_WRITES), (b"a", READS), (b"o", WRITES)]


def test_a_routing_tag_is_no_access() -> None:
    compare("DAGEXECUTE", b"ROUTING r |> AI.TENSORSET a FLOAT 1".split())
    assert named() == [(b"r", NO_KEY)]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("MODELRUN", "ERR AI.MODELRUN command is deprecated and cannot be used in enterprise cluster, use AI.MODELEXECUTE instead"),
        ("DAGRUN", "ERR AI.DAGRUN command is deprecated and cannot be used in enterprise cluster, use AI.DAGEXECUTE instead"),
        ("DAGRUN_RO", "ERR AI.DAGRUN_RO command is deprecated and cannot be used in enterprise cluster, use AI.DAGEXECUTE_RO instead"),
        ("DAGEXECUTE", None),
        ("MODELEXECUTE", None),
    ],
)
def test_redis_enterprise_refuses_deprecated_commands(command: str, text: str | None) -> None:
    words = {"MODELEXECUTE": b"m INPUTS 1 a OUTPUTS 1 o", "MODELRUN": b"m INPUTS a OUTPUTS o"}
    argv = [command.encode(), *words.get(command, b"LOAD 1 a |> AI.TENSORGET a").split()]
    with Arguments(argv) as arguments:
        keyspace.start(argv)
        made = lib.unit_plan(getattr(lib, f"CMD_{command}"), arguments.slices, len(argv), lib.RUN_ON_ENTERPRISE)
        assert (ffi.string(made.error).decode() if made.error else None) == text
        lib.unit_plan_free(made)


MANY = 20_000 if SANITIZED else 200_000


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("DAGRUN", lambda n: [b"LOAD", b"1", b"a", *[b"|>", b"AI.TENSORGET", b"a"] * (n // 3)]),
        ("DAGRUN", lambda n: [word for i in range(n // 5) for word in [b"|>", b"AI.TENSORSET", b"%d" % i, b"INT8", b"1"]]),
        ("DAGRUN", lambda n: [b"|>"] * n),
        ("DAGRUN", lambda n: [b"|>", b"AI.TENSORSET", b"x", b"INT8", b"%d" % n, b"VALUES", *[b"1"] * n]),
        ("DAGEXECUTE", lambda n: [b"LOAD", b"%d" % n, *[b"a"] * n, b"|>", b"AI.TENSORGET", b"a"]),
        ("DAGEXECUTE", lambda n: [b"PERSIST", b"%d" % n, *[b"%d" % i for i in range(n)], b"|>", b"AI.TENSORSET", b"1", b"INT8", b"1"]),
        ("MODELEXECUTE", lambda n: [b"mu", b"INPUTS", b"%d" % n, *[b"a"] * n, b"OUTPUTS", b"%d" % n, *[b"o"] * n]),
        ("SCRIPTRUN", lambda n: [b"s", b"f", b"INPUTS", *[b"a"] * n, b"OUTPUTS", *[b"o"] * n]),
        ("SCRIPTEXECUTE", lambda n: [b"s", b"f", b"KEYS", b"%d" % n, *[b"k"] * n]),
    ],
)
def test_the_time_to_plan_a_long_command_grows_no_faster_than_it(command: str, words: Any) -> None:
    """The twentieth part takes at least a 150th of the time; of a quadratic planner it would take a 400th."""

    def seconds(n: int) -> float:
        argv = [command.encode(), *words(n)]
        with Arguments(argv) as arguments:
            best = float("inf")
            for _ in range(3):
                began = time.process_time()
                lib.unit_plan_free(lib.unit_plan(getattr(lib, f"CMD_{command}"), arguments.slices, len(argv), lib.WALK_SILENTLY))
                best = min(best, time.process_time() - began)
            return best

    assert seconds(MANY) < 150 * max(seconds(MANY // 20), 1e-4)
