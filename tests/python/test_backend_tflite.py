"""The TFLITE backend, driven without a server: what it reports about a model, what it returns, what it refuses, and with which words."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redisai_py.backends import backend_class, tflite, tflite_check
from redisai_py.backends.base import Backend, ModelSpec, Session, Settings
from redisai_py.errors import BackendError
from redisai_py.testing import FakeMeter, FakeStrings, FakeTensor

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
SETTINGS = Settings()

pytestmark = pytest.mark.needs_tflite


@pytest.fixture(scope="module")
def backend() -> Backend:
    pytest.importorskip("ai_edge_litert")
    return backend_class("TFLITE").load(SETTINGS, FakeMeter())


@pytest.fixture
def opened(backend: Backend) -> Iterator[Callable[..., Session]]:
    def open_(blob: bytes | str, device: str = "CPU", settings: Settings = SETTINGS) -> Session:
        return backend.open(model(blob) if isinstance(blob, str) else blob, ModelSpec("key", device), settings)

    return open_


def model(name: str) -> bytes:
    return (MODELS / name).read_bytes()


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(BackendError) as caught:
        call(*arguments, **named)
    return str(caught.value)


def F(*values: Any) -> FakeTensor:
    return FakeTensor(np.array(values, np.float32))


A, B = F([5, 6]), F([1, 2])


# ---- making models -------------------------------------------------------------------------------------------------------------------


class Add:
    """A model of one ADD, as the objects of TFLite's schema, for tests that change one thing. `blob()` packs it."""

    def __init__(self, dtype: int = 0, shape: tuple[int, ...] = (1, 2)) -> None:
        self.schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
        s = self.schema
        self.tensors = [self.tensor(name, dtype, shape) for name in (b"a", b"b", b"sum")]
        self.operator = s.OperatorT()
        self.operator.inputs, self.operator.outputs = [0, 1], [2]
        self.operator.builtinOptionsType, self.operator.builtinOptions = s.BuiltinOptions.AddOptions, s.AddOptionsT()
        self.graph = s.SubGraphT()
        self.graph.tensors, self.graph.operators = self.tensors, [self.operator]
        self.graph.inputs, self.graph.outputs = [0, 1], [2]
        self.code = s.OperatorCodeT()
        self.code.version, self.code.builtinCode, self.code.deprecatedBuiltinCode = 1, 0, 0
        self.model = s.ModelT()
        self.model.version, self.model.operatorCodes, self.model.buffers = 3, [self.code], [s.BufferT()]
        self.model.subgraphs = [self.graph]

    def tensor(self, name: bytes, dtype: int, shape: tuple[int, ...]) -> Any:
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, dtype, list(shape), 0
        return tensor

    def use(self, builtin: int, inputs: list[int] | None = None) -> Add:
        """Another operator without options."""
        self.code.builtinCode = self.code.deprecatedBuiltinCode = builtin
        self.operator.builtinOptionsType, self.operator.builtinOptions = 0, None
        self.operator.inputs = self.graph.inputs = inputs or [0, 1]
        return self

    def blob(self) -> bytes:
        import flatbuffers

        builder = flatbuffers.Builder(0)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def types() -> Any:
    return pytest.importorskip("ai_edge_litert.schema_py_generated").TensorType


# ---- what the backend and a session say about themselves -----------------------------------------------------------------------------


def test_the_backend_names_itself(backend: Backend) -> None:
    assert (backend.name, backend.package, backend.version) == ("TFLITE", "ai-edge-litert", "NA")
    assert backend.batch_mismatch == "ERR Model did not generate the expected batch size"


def test_names_are_the_models_own(opened: Callable[..., Session]) -> None:
    session = opened("two_outputs.tflite")
    assert (session.inputs, session.outputs) == (("a", "b"), ("Identity", "Identity_1"))


def test_names_in_the_command_are_ignored(backend: Backend) -> None:
    session = backend.open(model("two_inputs.tflite"), ModelSpec("key", "CPU", ("x",), ("y",)), SETTINGS)
    assert session.inputs == ("a", "b")


def test_inputs_and_outputs_are_bound_by_position(opened: Callable[..., Session]) -> None:
    session = opened("two_outputs.tflite")
    assert [one.tolist() for one in session.run([A, B], 2)] == [[[6, 8]], [[4, 4]]]
    assert [one.tolist() for one in session.run([B, A], 2)] == [[[6, 8]], [[-4, -4]]]


@pytest.mark.parametrize("device", ["CPU", "cpu:1", "CPUfoo", "GPU", "GPU:0", "gpu:7"])
def test_every_device_is_the_cpu(opened: Callable[..., Session], device: str) -> None:
    assert opened("two_inputs.tflite", device).run([A, B], 1)[0].tolist() == [[5, 12]]


@pytest.mark.parametrize("device", ["", "TPU", "GPUx"])
def test_an_unknown_device_is_refused_before_anything_is_read(opened: Callable[..., Session], device: str) -> None:
    assert refusal(opened, b"junk", device) == "ERR Unsupported device"


# ---- store errors --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blob", [b"\x00\x01\x02\xff" * 16, b"\x1c\x00\x00\x00TFL3" + b"\xff" * 40, b"\x00" * 8])
def test_bytes_that_are_no_model(opened: Callable[..., Session], blob: bytes) -> None:
    assert refusal(opened, blob) == "Failed to load model from buffer"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("minimal.pt", "a TorchScript archive"),
        ("minimal.onnx", "an ONNX model"),
        ("minimal.pb", "a TensorFlow GraphDef"),
    ],
)
def test_a_model_of_another_kind_is_called_by_its_name(opened: Callable[..., Session], name: str, what: str) -> None:
    assert f"it looks like {what}" in refusal(opened, name)


def test_an_operator_that_is_not_built_in(opened: Callable[..., Session]) -> None:
    made = Add()
    made.code.builtinCode = made.code.deprecatedBuiltinCode = 32  # CUSTOM
    made.code.customCode = b"Mine"
    made.operator.builtinOptionsType, made.operator.builtinOptions = 0, None
    assert refusal(opened, made.blob()) in ("Failed to construct interpreter", "Failed to allocate tensors")


def test_an_operator_number_that_does_not_exist(opened: Callable[..., Session]) -> None:
    made = Add()
    made.code.builtinCode, made.code.deprecatedBuiltinCode = 9999, 127
    assert refusal(opened, made.blob()) == "Failed to construct interpreter"


def test_shapes_that_cannot_be_added(opened: Callable[..., Session]) -> None:
    made = Add()
    made.tensors[1].shape = [3, 3]
    assert refusal(opened, made.blob()) == "Failed to allocate tensors"


def test_every_truncation_is_refused(opened: Callable[..., Session]) -> None:
    for name in ("two_inputs.tflite", "digits_int8_io.tflite"):
        blob = model(name)
        for length in range(0, len(blob) - 32, max(1, len(blob) // 150)):
            assert refusal(opened, blob[:length])


def well_formed(blob: bytes) -> bool:
    try:
        tflite_check.operators(blob)
    except tflite_check.MalformedError:
        return False
    return True


def without_graphs(made: Add) -> None:
    made.model.subgraphs = []


def without_codes(made: Add) -> None:
    made.model.operatorCodes = []


def output_minus_one(made: Add) -> None:
    made.graph.outputs = [-1]


def output_out_of_range(made: Add) -> None:
    made.graph.outputs = [3]


def input_out_of_range(made: Add) -> None:
    made.graph.inputs = [0, 99]


def output_nobody_writes(made: Add) -> None:
    made.graph.operators = []


def operator_without_its_first_input(made: Add) -> None:
    made.operator.inputs = [-1, 1]


def operator_without_its_second_input(made: Add) -> None:
    made.operator.inputs = [0, -1]


def operator_writing_nowhere(made: Add) -> None:
    made.operator.outputs = [-1]


def operator_reading_beyond(made: Add) -> None:
    made.operator.inputs = [0, 2**31 - 1]


def buffer_out_of_range(made: Add) -> None:
    made.tensors[0].buffer = 1


def more_elements_than_memory(made: Add) -> None:
    made.tensors[0].shape = [2**31 - 1, 2**20]


@pytest.mark.parametrize(
    "damage",
    [
        without_graphs,
        without_codes,
        output_minus_one,
        output_out_of_range,
        input_out_of_range,
        output_nobody_writes,
        operator_without_its_first_input,
        operator_without_its_second_input,
        operator_writing_nowhere,
        operator_reading_beyond,
        buffer_out_of_range,
        more_elements_than_memory,
    ],
)
def test_what_would_bring_the_interpreter_down_never_reaches_it(opened: Callable[..., Session], damage: Callable[[Add], None]) -> None:
    assert well_formed(Add().blob())
    made = Add()
    damage(made)
    assert not well_formed(made.blob())
    assert refusal(opened, made.blob()) == "Failed to load model from buffer"


def test_an_lstm_may_lack_its_second_input() -> None:
    """LSTMs with coupled gates have no input gate."""
    made = Add().use(44)
    made.operator.inputs = [0, -1]
    assert well_formed(made.blob())


def test_a_dense_layer_may_lack_its_bias() -> None:
    made = Add().use(9)
    made.operator.inputs = [0, 1, -1]
    assert well_formed(made.blob())


@pytest.mark.parametrize(
    "path", sorted(MODELS.glob("*.tflite")) + sorted((ROOT / "examples" / "models").glob("*.tflite")), ids=lambda p: p.name
)
def test_models_that_are_sound_pass(path: Path) -> None:
    assert well_formed(path.read_bytes())


def test_a_vtable_that_points_outside_is_malformed() -> None:
    blob = bytearray(model("minimal.tflite"))
    root = int.from_bytes(blob[:4], "little")
    for offset in (-(2**31), 2**31 - 1, root + 1, -len(blob)):
        blob[root : root + 4] = offset.to_bytes(4, "little", signed=True)
        assert not well_formed(bytes(blob))


MUTATE = """
import random, sys
from pathlib import Path
import numpy as np
from redisai_py.backends import backend_class
from redisai_py.backends.base import ModelSpec, Settings
from redisai_py.errors import BackendError
from redisai_py.testing import FakeMeter, FakeTensor

blob, count = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
backend = backend_class("TFLITE").load(Settings(), FakeMeter())
for seed in range(count):
    chance, broken = random.Random(seed), bytearray(blob)
    if seed % 2:
        for _ in range(chance.randint(1, 8)):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    else:
        at = chance.randrange(len(broken) - 4)
        broken[at : at + 4] = chance.choice([bytes(4), b"\\xff" * 4, b"\\0\\0\\0\\x80", chance.randbytes(4)])
    try:
        session = backend.open(bytes(broken), ModelSpec("key", "CPU"), Settings())
        session.run([FakeTensor(np.zeros((1, 2), np.float32))] * len(session.inputs), len(session.outputs))
    except BackendError as error:
        assert str(error)
print("answered", count)
"""


@pytest.mark.parametrize("name", ["minimal.tflite", "two_inputs.tflite", "bool_identity.tflite"])
def test_mutated_models_are_answered(name: str) -> None:
    done = child(MUTATE, str(MODELS / name), "2000")
    assert done.stdout.split() == ["answered", "2000"], (done.returncode, done.stderr[-2000:])


def child(code: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", textwrap.dedent(code), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False
    )


# ---- runs ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "type_name"),
    [
        ("FLOAT", np.float32, "FLOAT32"),
        ("INT8", np.int8, "INT8"),
        ("UINT8", np.uint8, "UINT8"),
        ("INT16", np.int16, "INT16"),
        ("INT32", np.int32, "INT32"),
        ("INT64", np.int64, "INT64"),
        ("BOOL", np.bool_, "BOOL"),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (2, 2), (0, 4), (1, 2, 1, 3)])
def test_every_dtype_and_shape_goes_through(
    opened: Callable[..., Session], name: str, dtype: Any, type_name: str, shape: tuple[int, ...]
) -> None:
    """CONCATENATION of one input along axis 0: the operator that takes the most types."""
    made = Add(getattr(types(), type_name)).use(2, [0])
    made.operator.builtinOptionsType, made.operator.builtinOptions = 10, made.schema.ConcatenationOptionsT()
    made.tensors[:] = [made.tensors[0], made.tensors[2]]
    made.operator.outputs = made.graph.outputs = [1]
    value = (np.arange(int(np.prod(shape))) % 2).reshape(shape).astype(dtype)
    (back,) = opened(made.blob()).run([FakeTensor(value, name)], 1)
    assert back.dtype == dtype and back.shape == shape and back.flags.c_contiguous and np.array_equal(back, value)


STRINGS = [b"", b"a", b"\xff\xfe", "\u00e9\u4e2d".encode(), b"x" * 1000, b"tail "]


@pytest.mark.parametrize("shape", [(3, 2), (1, 2)])
def test_strings_go_through(opened: Callable[..., Session], shape: tuple[int, ...]) -> None:
    elements = STRINGS[: int(np.prod(shape))]
    (back,) = opened("string_identity.tflite").run([FakeStrings(elements, shape)], 1)
    assert back.dtype == object and back.shape == shape and back.ravel().tolist() == elements


def test_booleans_are_accepted(opened: Callable[..., Session]) -> None:
    (back,) = opened("bool_identity.tflite").run([FakeTensor([[True, False]], "BOOL")], 1)
    assert back.dtype == np.bool_ and back.tolist() == [[True, False]]


@pytest.mark.parametrize(("name", "dtype"), [("digits_int8_io.tflite", np.int8), ("digits_uint8_io.tflite", np.uint8)])
def test_quantised_models_take_and_give_raw_integers(opened: Callable[..., Session], name: str, dtype: Any) -> None:
    session = opened(name)
    details = session._idle[0].inputs[0]  # type: ignore[attr-defined]
    scale, zero = details["quantization"]
    rows = np.load(ROOT / "examples" / "models" / "digits_sample.npy")
    raw = np.clip(np.round(rows / scale) + zero, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
    (out,) = session.run([FakeTensor(raw)], 1)
    assert out.dtype == dtype and out.shape == (10, 10)
    assert out.argmax(axis=1).tolist() == np.load(ROOT / "examples" / "models" / "digits_labels.npy").tolist()


def test_an_output_without_dimensions_is_an_array(opened: Callable[..., Session]) -> None:
    made = Add(shape=())
    (total,) = opened(made.blob()).run([FakeTensor(1, "FLOAT"), FakeTensor(2, "FLOAT")], 1)
    assert type(total) is np.ndarray and total.shape == () and total == 3


def test_the_input_that_changed_is_resized_by_its_own_index(opened: Callable[..., Session]) -> None:
    """The inputs' tensors need not be the first of the model."""
    made = Add()
    made.graph.inputs, made.operator.inputs, made.graph.outputs, made.operator.outputs = [2, 1], [2, 1], [0], [0]
    session = opened(made.blob())
    assert session.inputs == ("sum", "b")
    for rows in (3, 1, 2):
        mine = FakeTensor(np.full((rows, 2), rows, np.float32))
        assert session.run([mine, B], 1)[0].tolist() == [[rows + 1, rows + 2]] * rows


@pytest.mark.parametrize("name", ["two_inputs.tflite", "two_outputs.tflite"])
def test_batches_of_changing_size(opened: Callable[..., Session], name: str) -> None:
    session = opened(name)
    for rows in (1, 5, 2, 100, 1):
        a = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        out = session.run([FakeTensor(a), FakeTensor(a + 1)], len(session.outputs))
        assert [one.shape for one in out] == [(rows, 2)] * len(out)
        assert np.array_equal(out[0], a * (a + 1) if name == "two_inputs.tflite" else 2 * a + 1)


def test_outputs_are_copies(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")
    (first,) = session.run([A, B], 1)
    session.run([B, B], 1)
    assert first.tolist() == [[5, 12]]


def test_inputs_are_left_alone(opened: Callable[..., Session]) -> None:
    mine = F([5, 6])
    opened("two_inputs.tflite").run([mine, B], 1)
    assert mine.memory.tolist() == [[5, 6]]


# ---- run errors, in their order ------------------------------------------------------------------------------------------------------


def test_another_number_of_inputs(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")
    assert refusal(session.run, [A], 1) == "Inconsistent number of inputs"
    assert refusal(session.run, [A, B, A], 1) == "Inconsistent number of inputs"
    assert refusal(session.run, [A], 2) == "Inconsistent number of inputs"


def test_another_number_of_outputs(opened: Callable[..., Session]) -> None:
    session = opened("two_outputs.tflite")
    assert refusal(session.run, [A, B], 1) == "Inconsistent number of outputs"
    assert refusal(session.run, [A, FakeTensor([[1, 2]], "INT32")], 3) == "Inconsistent number of outputs"


class Huge:
    """A tensor whose dimension does not fit TFLite's 32 bits."""

    dtype, shape, nbytes = "FLOAT", (2**31, 0), 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.empty(self.shape, np.float32)


def test_a_shape_tflite_cannot_hold(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")
    assert refusal(session.run, [Huge(), B], 1) == "Failed to resize input tensors"
    assert session.run([A, B], 1)[0].tolist() == [[5, 12]]


def test_shapes_that_do_not_fit_the_model(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")
    assert refusal(session.run, [F([1, 2, 3]), B], 1) == "Failed to allocate tensors"
    assert session.run([A, B], 1)[0].tolist() == [[5, 12]]


def test_shapes_are_looked_at_before_dtypes(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")
    assert refusal(session.run, [F([1, 2, 3]), FakeTensor([[1, 2]], "INT32")], 1) == "Failed to allocate tensors"


MISMATCH = "Input tensor type doesn't match the type expected by the model definition"


@pytest.mark.parametrize("name", ["DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "BOOL"])
def test_a_wrong_dtype_is_not_converted(opened: Callable[..., Session], name: str) -> None:
    session = opened("two_inputs.tflite")
    assert refusal(session.run, [A, FakeTensor([[1, 1]], name)], 1) == MISMATCH
    assert refusal(session.run, [A, FakeStrings([b"a", b"b"], (1, 2))], 1) == MISMATCH
    assert session.run([A, B], 1)[0].tolist() == [[5, 12]]


def test_a_wrong_dtype_in_another_shape_leaves_the_model_usable(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")
    assert refusal(session.run, [FakeTensor(np.ones((4, 2)), "DOUBLE"), FakeTensor(np.ones((4, 2)), "DOUBLE")], 1) == MISMATCH
    assert session.run([A, B], 1)[0].tolist() == [[5, 12]]


def test_a_half_input_matches_nothing(opened: Callable[..., Session]) -> None:
    """There is no wire name for half, so the text about Float16 inputs cannot be reached."""
    session = opened(identity_of("FLOAT16"))
    assert refusal(session.run, [A], 1) == MISMATCH


@pytest.mark.parametrize("name", ["DOUBLE", "UINT16"])
def test_inputs_1_2_7_does_not_support(opened: Callable[..., Session], name: str) -> None:
    session = opened(identity_of({"DOUBLE": "FLOAT64"}.get(name, name)))
    assert refusal(session.run, [FakeTensor([[1, 2]], name)], 1) == "Unsupported input data type"


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("FLOAT16", "Float16 not currently supported as output tensor data type"),
        ("FLOAT64", "Unsupported output data type"),
        ("UINT32", "Unsupported output data type"),
        ("COMPLEX64", "Unsupported output data type"),
    ],
)
def test_outputs_without_a_wire_name(opened: Callable[..., Session], type_name: str, text: str) -> None:
    """CAST from FLOAT."""
    made = Add().use(53, [0])
    made.tensors[:] = [made.tensors[0], made.tensor(b"out", getattr(types(), type_name), (1, 2))]
    made.operator.outputs = made.graph.outputs = [1]
    assert refusal(opened(made.blob()).run, [A], 1) == text


def identity_of(type_name: str) -> bytes:
    """A model without operators: its output is its input."""
    made = Add(getattr(types(), type_name))
    made.graph.tensors, made.graph.operators, made.graph.inputs, made.graph.outputs = made.tensors[:1], [], [0], [0]
    return made.blob()


def test_a_run_that_fails(opened: Callable[..., Session]) -> None:
    """GATHER with an index that is out of range."""
    made = Add().use(36)
    made.operator.builtinOptionsType, made.operator.builtinOptions = 23, made.schema.GatherOptionsT()
    made.tensors[:] = [made.tensors[0], made.tensor(b"i", types().INT32, (1,)), made.tensor(b"out", 0, (1, 2))]
    session = opened(made.blob())
    assert refusal(session.run, [A, FakeTensor([9], "INT32")], 1) == "Failed to invoke TfLite"
    assert session.run([A, FakeTensor([0], "INT32")], 1)[0].tolist() == [[5, 6]]


# ---- interpreters --------------------------------------------------------------------------------------------------------------------


def counted(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every interpreter the backend builds from now on."""
    built: list[Any] = []
    real = backend._interpreter  # type: ignore[attr-defined]
    monkeypatch.setattr(backend, "_interpreter", lambda **named: built.append(named["num_threads"]) or real(**named))
    return built


def test_one_thread_uses_one_interpreter(backend: Backend, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted(backend, monkeypatch)
    session = opened("two_inputs.tflite")
    for _ in range(10):
        session.run([A, B], 1)
    assert built == [1]


def test_a_failed_interpreter_is_not_used_again(backend: Backend, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted(backend, monkeypatch)
    session = opened("two_inputs.tflite")
    for expected in (2, 3):
        refusal(session.run, [F([1, 2, 3]), B], 1)
        session.run([A, B], 1)
        assert len(built) == expected


def test_a_refused_input_costs_no_interpreter(backend: Backend, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted(backend, monkeypatch)
    session = opened("two_inputs.tflite")
    for _ in range(5):
        refusal(session.run, [A, FakeTensor([[1, 1]], "INT8")], 1)
    session.run([A, B], 1)
    assert built == [1]


def test_runs_side_by_side_do_not_mix(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")

    def work(worker: int) -> bool:
        rows = np.full((worker + 1, 2), worker, np.float32)
        mine = FakeTensor(rows)
        return all(np.array_equal(session.run([mine, mine], 1)[0], rows * rows) for _ in range(500))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(session._idle) <= 4  # type: ignore[attr-defined]


def test_threads_are_as_configured(backend: Backend, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    built = counted(backend, monkeypatch)
    opened("two_inputs.tflite", settings=Settings(intra_op=3))
    opened("two_inputs.tflite", settings=Settings(workers=1))
    assert built == [3, 1]


def test_closing_a_session_frees_its_interpreters(opened: Callable[..., Session]) -> None:
    session = opened("two_inputs.tflite")
    session.close()
    assert not session._idle  # type: ignore[attr-defined]


@pytest.mark.parametrize(("limit", "runs"), [(1 << 24, 2), (3, 0)])
def test_a_session_has_run_before_it_is_handed_out_unless_its_inputs_are_huge(
    opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, limit: int, runs: int
) -> None:
    shapes: list[Any] = []
    monkeypatch.setattr(tflite, "WARM_UP_ELEMENTS", limit)
    monkeypatch.setattr(tflite, "zeros", lambda dtype, shape: shapes.append(shape) or np.zeros(shape, dtype))
    session = opened("two_inputs.tflite")
    assert shapes == [(1, 2)] * runs
    assert session.run([A, B], 1)[0].tolist() == [[5, 12]]


def converted(function: Callable[..., Any], *specs: Any) -> bytes:
    """A model from a TensorFlow function, for what is too long to write in the schema's objects."""
    tf = pytest.importorskip("tensorflow")
    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert())


@pytest.mark.slow
@pytest.mark.needs_tf
def test_a_loop_without_end_can_be_stored(opened: Callable[..., Session]) -> None:
    tf = pytest.importorskip("tensorflow")

    def forever(x: Any) -> Any:
        return tf.while_loop(lambda value: tf.reduce_sum(value * 0) >= 0, lambda value: [value + 1], [x])[0]

    assert opened(converted(forever, tf.TensorSpec([1], tf.float32, name="x"))).inputs == ("x",)


@pytest.mark.slow
@pytest.mark.needs_tf
def test_a_loop_with_an_end_runs(opened: Callable[..., Session]) -> None:
    tf = pytest.importorskip("tensorflow")

    def until_ten(x: Any) -> Any:
        return tf.while_loop(lambda value: tf.reduce_sum(value) < 10, lambda value: [value + 3], [x])[0]

    assert opened(converted(until_ten, tf.TensorSpec([1], tf.float32, name="x"))).run([F(1)], 1)[0].tolist() == [10]


@pytest.mark.slow
@pytest.mark.needs_tf
def test_no_run_sees_the_variables_of_another(opened: Callable[..., Session], tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")

    class Counter(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.total = tf.Variable([0.0])

        @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            return self.total.assign_add(x) + 0.0

    module = Counter()
    tf.saved_model.save(module, str(tmp_path / "counter"), signatures=module.__call__)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "counter"))
    converter.experimental_enable_resource_variables = True
    session = opened(bytes(converter.convert()))
    assert [session.run([F(2)], 1)[0].tolist() for _ in range(3)] == [[2], [2], [2]]


def test_threads_run_while_a_model_does(opened: Callable[..., Session]) -> None:
    """A run gives the interpreter lock away."""
    session = opened("cnn.tflite")
    tensor = FakeTensor(np.ones((2000, 1, 28, 28), np.float32))
    running, ticks = threading.Event(), 0

    def run() -> None:
        running.set()
        session.run([tensor], 1)

    worker = threading.Thread(target=run)
    worker.start()
    running.wait()
    while worker.is_alive():
        worker.join(0.001)
        ticks += 1
    assert ticks > 3


# ---- loading -------------------------------------------------------------------------------------------------------------------------


def test_importing_the_backend_does_not_import_the_library() -> None:
    done = child(
        "import sys; from redisai_py.backends import backend_class; backend_class('TFLITE'); print('ai_edge_litert' in sys.modules)"
    )
    assert done.stdout.strip() == "False", done.stderr


def test_nothing_is_written_to_standard_error() -> None:
    done = child(
        """
        from pathlib import Path
        import numpy as np
        from redisai_py.backends import backend_class
        from redisai_py.backends.base import ModelSpec, Settings
        from redisai_py.errors import BackendError
        from redisai_py.testing import FakeMeter, FakeTensor

        backend = backend_class("TFLITE").load(Settings(), FakeMeter())
        for name in sorted(Path("tests/models").glob("*.tflite")) + [Path("tests/models/minimal.pt")]:
            for cut in (None, -1, 300):
                try:
                    session = backend.open(name.read_bytes()[:cut], ModelSpec("key", "CPU"), Settings())
                except BackendError:
                    continue
                for shape in ((1, 2), (1, 64), (3, 3, 3), (0, 2), ()):
                    try:
                        session.run([FakeTensor(np.ones(shape, np.float32))] * len(session.inputs), len(session.outputs))
                    except BackendError:
                        pass
        print("done")
        """
    )
    assert (done.stdout.strip(), done.stderr) == ("done", "")


LOAD = """
import sys
from redisai_py.backends import backend_class
from redisai_py.backends.base import ModelSpec, Settings
from redisai_py.testing import FakeMeter, FakeTensor

for name in sys.argv[2:]:
    sys.modules[name] = None
try:
    backend = backend_class("TFLITE").load(Settings(), FakeMeter())
except ImportError as error:
    print("ImportError", error)
else:
    blob = open(sys.argv[1], "rb").read()
    tensor = FakeTensor([[2, 3]], "FLOAT")
    session = backend.open(blob, ModelSpec("key", "CPU"), Settings())
    print(backend.origin, session.run([tensor, tensor], 1)[0].tolist())
"""
TWO_INPUTS = str(MODELS / "two_inputs.tflite")


def test_the_first_choice_is_litert() -> None:
    done = child(LOAD, TWO_INPUTS)
    assert done.stdout.strip() == "ai_edge_litert.interpreter [[4.0, 9.0]]", done.stderr


@pytest.mark.needs_tf
def test_without_litert_and_tflite_runtime_tensorflows_own_is_used() -> None:
    pytest.importorskip("tensorflow")
    done = child(LOAD, TWO_INPUTS, "ai_edge_litert", "tflite_runtime")
    assert (done.stdout.strip(), done.stderr) == ("tensorflow.lite.python.interpreter [[4.0, 9.0]]", "")


def test_without_any_loading_raises_import_error_with_all_reasons() -> None:
    done = child(LOAD, TWO_INPUTS, "ai_edge_litert", "tflite_runtime", "tensorflow")
    assert done.stdout.startswith("ImportError ai_edge_litert.interpreter: "), done.stderr
    assert all(f"{name}: " in done.stdout for name in tflite.LIBRARIES)


def test_a_library_that_imports_and_cannot_run_is_passed_over(tmp_path: Path) -> None:
    """What tflite_runtime does beside numpy 2: SystemError at the first interpreter, its reason in the cause."""
    package = tmp_path / "ai_edge_litert"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text(
        "class Interpreter:\n    def __init__(self, **_):\n        raise SystemError('failed') from ImportError('numpy.core.multiarray')\n"
    )
    done = child(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + LOAD, TWO_INPUTS, "tflite_runtime", "tensorflow")
    assert "ai_edge_litert.interpreter: numpy.core.multiarray" in done.stdout, done.stderr


@pytest.fixture(scope="session")
def old_python() -> str:
    """A Python 3.11 with tflite_runtime and numpy 1, in an environment of its own that is kept between runs."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("tflite_runtime has wheels for Python 3.11 and older")
    folder = ROOT / ".cache" / "tflite-runtime"
    python = folder / "bin" / "python"
    installed = folder / "installed"
    if not installed.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--no-input", "tflite-runtime==2.14.0", "numpy<2"],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"tflite-runtime cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
        installed.touch()
    return str(python)


@pytest.mark.slow
def test_tflite_runtime_serves_where_it_is_all_there_is(old_python: str) -> None:
    done = child(LOAD, TWO_INPUTS, python=old_python)
    assert (done.stdout.strip(), done.stderr) == ("tflite_runtime.interpreter [[4.0, 9.0]]", "")


@pytest.mark.slow
def test_tflite_runtime_gives_the_answers_of_the_digits_model(old_python: str) -> None:
    done = child(
        """
        import numpy as np
        from redisai_py.backends import backend_class
        from redisai_py.backends.base import ModelSpec, Settings
        from redisai_py.errors import BackendError
        from redisai_py.testing import FakeMeter, FakeStrings, FakeTensor

        def opened(name):
            return backend.open(open(name, "rb").read(), ModelSpec("key", "CPU"), Settings())

        backend = backend_class("TFLITE").load(Settings(), FakeMeter())
        rows = np.load("examples/models/digits_sample.npy")
        for name in ("digits.tflite", "digits_int8.tflite"):
            (out,) = opened("examples/models/" + name).run([FakeTensor(rows)], 1)
            print(*out.argmax(axis=1))
        (out,) = opened("tests/models/string_identity.tflite").run([FakeStrings([b"a", b"bc"], (1, 2))], 1)
        print(*out[0])
        session = opened("tests/models/two_inputs.tflite")
        try:
            session.run([FakeTensor([[1, 2, 3]], "FLOAT"), FakeTensor([[1, 2]], "FLOAT")], 1)
        except BackendError as error:
            print(error)
        """,
        python=old_python,
    )
    digits = "0 1 2 3 4 5 6 7 8 9"
    assert done.stdout.splitlines() == [digits, digits, "b'a' b'bc'", "Failed to allocate tensors"], done.stderr
