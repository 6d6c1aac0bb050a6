"""The TF backend, driven without a server: what it reports about a graph, what it returns, what it refuses, and with which words."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redisai_py.backends import backend_class, tf_ops, tf_saved_model
from redisai_py.backends.base import Backend, ModelSpec, Session, Settings
from redisai_py.errors import BackendError
from redisai_py.tensor import DTYPES
from redisai_py.testing import FakeMeter, FakeStrings, FakeTensor

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
SETTINGS = Settings()
TRUSTING = Settings(allow_file_ops=True)

pytestmark = pytest.mark.needs_tf


@pytest.fixture(scope="module")
def backend() -> Backend:
    pytest.importorskip("tensorflow")
    return backend_class("TF").load(SETTINGS, FakeMeter())


@pytest.fixture(scope="module")
def tf(backend: Backend) -> Any:
    import tensorflow

    return tensorflow


@pytest.fixture
def opened(backend: Backend) -> Iterator[Callable[..., Session]]:
    sessions = []

    def open_(blob: bytes, inputs: str = "", outputs: str = "", device: str = "CPU", settings: Settings = SETTINGS) -> Session:
        sessions.append(backend.open(blob, ModelSpec("key", device, tuple(inputs.split()), tuple(outputs.split())), settings))
        return sessions[-1]

    yield open_
    for session in sessions:
        session.close()


@pytest.fixture
def graph(tf: Any) -> Callable[..., bytes]:
    """A GraphDef from a function that adds nodes to the default graph."""

    def build(make: Callable[[Any], Any], *, v2_loops: bool = True) -> bytes:
        tf1 = tf.compat.v1
        (tf1.enable_control_flow_v2 if v2_loops else tf1.disable_control_flow_v2)()
        with tf.Graph().as_default() as made:
            make(tf1)
        return bytes(made.as_graph_def().SerializeToString())

    return build


def model(name: str) -> bytes:
    return (MODELS / name).read_bytes()


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(BackendError) as caught:
        call(*arguments, **named)
    return str(caught.value)


def F(*values: Any) -> FakeTensor:
    return FakeTensor(np.array(values, np.float32))


A, B = F(2, 3), F(3, 5)


# ---- what the backend and a session say about themselves -------------------------------------------------------------------------------


def test_the_backend_names_itself(backend: Backend, tf: Any) -> None:
    assert (backend.name, backend.package, backend.version) == ("TF", "tensorflow-cpu", tf.__version__)
    assert Path(backend.origin).name == "tensorflow"  # type: ignore[attr-defined]
    assert backend.batch_mismatch == "ERR Tensorflow batching error: model did not generate the expected batch size"


def test_a_session_shows_the_names_of_the_command_in_its_order(opened: Callable[..., Session]) -> None:
    session = opened(model("graph.pb"), "b a", "c")
    assert (session.inputs, session.outputs) == (["b", "a"], ["c"])


def test_the_introductions_graph_multiplies(opened: Callable[..., Session]) -> None:
    (product,) = opened(model("graph.pb"), "a b", "c").run([A, B], 1)
    assert product.tolist() == [6, 15]


def test_inputs_are_bound_by_position(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    blob = graph(lambda tf1: tf1.subtract(tf1.placeholder(tf1.float32, name="a"), tf1.placeholder(tf1.float32, name="b"), name="d"))
    assert opened(blob, "a b", "d").run([A, B], 1)[0].tolist() == [-1, -2]
    assert opened(blob, "b a", "d").run([A, B], 1)[0].tolist() == [1, 2]


def test_outputs_come_in_the_order_asked_for_and_may_repeat(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    def make(tf1: Any) -> None:
        x = tf1.placeholder(tf1.float32, name="x")
        tf1.add(x, 1.0, name="more")
        tf1.subtract(x, 1.0, name="less")

    session = opened(graph(make), "x", "less more less")
    assert [one.tolist() for one in session.run([F(5)], 3)] == [[4], [6], [4]]
    assert [one.tolist() for one in session.run([F(5)], 1)] == [[4]]


def test_a_graph_without_inputs_runs(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    assert opened(graph(lambda tf1: tf1.constant([7.0], name="c")), "", "c").run([], 1)[0].tolist() == [7]


def test_of_an_operation_with_several_outputs_the_first_is_taken(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    blob = graph(lambda tf1: tf1.split(tf1.placeholder(tf1.float32, [4], name="x"), 2, name="halves"))
    assert opened(blob, "x", "halves").run([F(1, 2, 3, 4)], 1)[0].tolist() == [1, 2]


# ---- devices ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["CPU", "cpu", "CPU:1", "CPUfoo"])
def test_everything_that_starts_with_cpu_is_the_cpu(opened: Callable[..., Session], device: str) -> None:
    assert opened(model("graph.pb"), "a b", "c", device).run([A, B], 1)[0].tolist() == [6, 15]


@pytest.mark.parametrize("device", ["", "TPU", "GPUx", "XCPU"])
def test_an_unknown_device_is_refused_before_anything_is_read(opened: Callable[..., Session], device: str) -> None:
    assert refusal(opened, b"junk", "a", "c", device) == "ERR unsupported device"


@pytest.mark.parametrize("device", ["GPU", "gpu:0", "GPU:7"])
def test_a_gpu_that_is_not_there(backend: Backend, opened: Callable[..., Session], device: str) -> None:
    if backend._library.gpus and device != "GPU:7":  # type: ignore[attr-defined]
        pytest.skip("there is a GPU")
    assert refusal(opened, model("graph.pb"), "a b", "c", device) == "ERR GPU requested but TF couldn't find CUDA"


def test_names_are_looked_at_before_the_gpu(opened: Callable[..., Session]) -> None:
    assert refusal(opened, model("graph.pb"), "a z", "c", "GPU:7") == 'ERR Input node named "z" not found in TF graph.'


def test_a_graph_pinned_to_a_gpu_runs_on_the_cpu_it_was_stored_for(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    def make(tf1: Any) -> None:
        with tf1.device("/device:GPU:0"):
            tf1.add(tf1.placeholder(tf1.float32, name="x"), 1.0, name="y")

    assert opened(graph(make), "x", "y").run([F(1)], 1)[0].tolist() == [2]


# ---- store errors ----------------------------------------------------------------------------------------------------------------------


def test_an_unknown_input(opened: Callable[..., Session]) -> None:
    assert refusal(opened, model("graph.pb"), "a z", "c") == 'ERR Input node named "z" not found in TF graph.'


def test_an_input_must_be_a_placeholder(opened: Callable[..., Session]) -> None:
    assert refusal(opened, model("graph.pb"), "a c", "c") == 'ERR Input node named "c" not found in TF graph.'


def test_an_unknown_output(opened: Callable[..., Session]) -> None:
    assert refusal(opened, model("graph.pb"), "a b", "z") == 'ERR Output node named "z" not found in TF graph'


def test_inputs_are_looked_at_before_outputs(opened: Callable[..., Session]) -> None:
    assert refusal(opened, model("graph.pb"), "y b", "z") == 'ERR Input node named "y" not found in TF graph.'


def test_the_index_of_a_tensor_is_not_stripped_from_a_name(opened: Callable[..., Session]) -> None:
    assert refusal(opened, model("graph.pb"), "a:0 b", "c") == 'ERR Input node named "a:0" not found in TF graph.'
    assert refusal(opened, model("graph.pb"), "a b", "c:0") == 'ERR Output node named "c:0" not found in TF graph'


def test_an_output_without_a_tensor(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    assert "no outputs" in refusal(opened, graph(lambda tf1: tf1.no_op(name="n")), "", "n")


@pytest.mark.parametrize("blob", [b"\x00\x01\x02\xff" * 16, b"\x0a\xff\xff\xff\xff"])
def test_bytes_that_are_no_graph(opened: Callable[..., Session], blob: bytes) -> None:
    assert refusal(opened, blob, "a", "c") == "Invalid GraphDef"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("minimal.pt", "a TorchScript archive"),
        ("minimal.onnx", "an ONNX model"),
        ("minimal.tflite", "a TensorFlow Lite model"),
    ],
)
def test_a_model_of_another_kind_is_called_by_its_name(opened: Callable[..., Session], name: str, what: str) -> None:
    assert f"it looks like {what}" in refusal(opened, model(name), "a", "c")


def test_a_graph_with_an_operator_that_does_not_exist(opened: Callable[..., Session], tf: Any) -> None:
    definition = tf.compat.v1.GraphDef()
    definition.node.add(name="x", op="NoSuchOperator")
    text = refusal(opened, definition.SerializeToString(), "", "x")
    assert text == "Op type not registered 'NoSuchOperator'"  # and not the name of this machine


def test_a_graph_with_a_missing_node(opened: Callable[..., Session], tf: Any) -> None:
    definition = tf.compat.v1.GraphDef.FromString(model("graph.pb"))
    definition.node[-1].input[0] = "gone"
    assert refusal(opened, definition.SerializeToString(), "a b", "c") == "Node 'c': Unknown input node 'gone'"


def test_every_truncation_of_a_graph_is_refused_or_is_a_smaller_graph(opened: Callable[..., Session]) -> None:
    blob = (ROOT / "examples" / "models" / "digits.pb").read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(blob), 499)]:
        assert refusal(opened, blob[:length], "x", "probabilities")


MUTATE = """
import random, sys
from pathlib import Path
from redisai_py.backends import backend_class
from redisai_py.backends.base import ModelSpec, Settings
from redisai_py.errors import BackendError
from redisai_py.testing import FakeMeter, FakeTensor
import numpy as np

name, inputs, outputs, shape, count = sys.argv[1:]
blob = Path(name).read_bytes()
backend = backend_class("TF").load(Settings(), FakeMeter())
tensor = FakeTensor(np.zeros(eval(shape), np.float32))
answered = 0
for seed in range(int(count)):
    chance = random.Random(seed)
    broken = bytearray(blob)
    for _ in range(chance.randint(1, 8)):
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    try:
        session = backend.open(bytes(broken), ModelSpec("key", "CPU", tuple(inputs.split()), tuple(outputs.split())), Settings())
        session.run([tensor] * len(session.inputs), len(session.outputs))
        session.close()
    except BackendError as error:
        assert str(error) and "\\n" not in str(error), repr(str(error))
    answered += 1
print("answered", answered)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "shape"),
    [("tests/models/graph.pb", "a b", "c", "(2,)"), ("examples/models/digits.pb", "x", "probabilities", "(1, 64)")],
)
def test_flipped_bits_are_answered_with_one_line(name: str, inputs: str, outputs: str, shape: str) -> None:
    done = child(MUTATE, str(ROOT / name), inputs, outputs, shape, "400")
    assert done.stdout.split() == ["answered", "400"], done.stderr[-2000:]


def child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False
    )


# ---- runs ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0, 4), (1, 1, 2, 1, 3)])
def test_every_numeric_dtype_and_shape_goes_through(
    opened: Callable[..., Session], graph: Callable[..., bytes], name: str, shape: tuple[int, ...]
) -> None:
    dtype = DTYPES[name]
    blob = graph(lambda tf1: tf1.identity(tf1.placeholder(tf1.as_dtype(dtype), name="x"), name="y"))
    value = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    (back,) = opened(blob, "x", "y").run([FakeTensor(value, name)], 1)
    assert type(back) is np.ndarray and back.dtype == dtype and back.shape == shape and back.flags.c_contiguous
    assert np.array_equal(back, value)


STRINGS = [b"", b"a", b"\xff\xfe", "\u00e9\u4e2d".encode(), b"x" * 1000, b"tail "]


@pytest.mark.parametrize("shape", [(6,), (2, 3), (6, 1, 1)])
def test_strings_go_through(opened: Callable[..., Session], graph: Callable[..., bytes], shape: tuple[int, ...]) -> None:
    blob = graph(lambda tf1: tf1.identity(tf1.placeholder(tf1.string, name="x"), name="y"))
    (back,) = opened(blob, "x", "y").run([FakeStrings(STRINGS, shape)], 1)
    assert back.dtype == object and back.shape == shape and back.ravel().tolist() == STRINGS


def test_a_single_string_without_dimensions(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    blob = graph(lambda tf1: tf1.identity(tf1.placeholder(tf1.string, name="x"), name="y"))
    (back,) = opened(blob, "x", "y").run([FakeStrings([b"one"], ())], 1)
    assert type(back) is np.ndarray and back.dtype == object and back.shape == () and back.item() == b"one"


def test_operators_see_strings_without_their_closing_nul(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    def make(tf1: Any) -> None:
        x = tf1.placeholder(tf1.string, [None], name="x")
        tf1.strings.length(x, name="length")
        tf1.equal(x, "abc", name="same")

    lengths, same = opened(graph(make), "x", "length same").run([FakeStrings([b"abc", b""])], 2)
    assert lengths.tolist() == [3, 0] and same.tolist() == [True, False]


def test_the_fixtures_for_strings_and_booleans(opened: Callable[..., Session]) -> None:
    (back,) = opened(model("string_identity.pb"), "x", "y").run([FakeStrings([b"a", b"b"], (1, 2))], 1)
    assert back.tolist() == [[b"a", b"b"]]
    (back,) = opened(model("bool_identity.pb"), "x", "y").run([FakeTensor([[True, False]], "BOOL")], 1)
    assert back.tolist() == [[True, False]] and back.dtype == np.bool_


def test_strings_of_many_dimensions_are_refused(opened: Callable[..., Session], tf: Any) -> None:
    """The library's iterator over them has room for 32 and writes past it: the process would be gone."""
    definition = tf.compat.v1.GraphDef.FromString(model("string_identity.pb"))
    definition.node[0].attr["shape"].shape.unknown_rank = True
    del definition.node[0].attr["shape"].shape.dim[:]
    session = opened(definition.SerializeToString(), "x", "y")
    assert session.run([FakeStrings([b"a"], (1,) * 32)], 1)[0].ndim == 32
    assert refusal(session.run, [FakeStrings([b"a"], (1,) * 33)], 1) == "ERR TF takes STRING tensors of at most 32 dimensions"


def test_an_output_without_dimensions_is_an_array(opened: Callable[..., Session]) -> None:
    (total,) = opened(model("scalar_output.pb"), "x", "sum").run([F(1, 2, 3)], 1)
    assert type(total) is np.ndarray and total.shape == () and total == 6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint32", "uint64", "complex64", "qint8"])
def test_an_output_whose_dtype_has_no_name_is_a_run_time_error(
    opened: Callable[..., Session], graph: Callable[..., bytes], dtype: str
) -> None:
    def make(tf1: Any) -> None:
        x = tf1.placeholder(tf1.float32, name="x")
        if dtype == "qint8":
            tf1.quantization.quantize(x, 0.0, 1.0, tf1.qint8, name="y")
        else:
            tf1.cast(x, dtype, name="y")

    session = opened(graph(make), "x", "y")
    assert refusal(session.run, [F(1)], 1) == f"ERR TF returned a tensor of type {dtype}, which has no RedisAI dtype"


def test_a_wrong_shape(opened: Callable[..., Session]) -> None:
    session = opened(model("graph.pb"), "a b", "c")
    assert refusal(session.run, [F(1, 2, 3), F(1, 2, 3, 4)], 1) == "Incompatible shapes: [3] vs. [4] [[{{node c}}]]"
    assert session.run([A, B], 1)[0].tolist() == [6, 15]


def test_a_wrong_dtype_is_not_converted(opened: Callable[..., Session]) -> None:
    session = opened(model("graph.pb"), "a b", "c")
    assert "actual double vs. expect float" in refusal(session.run, [FakeTensor([2, 3], "DOUBLE"), B], 1)
    assert "actual string vs. expect float" in refusal(session.run, [FakeStrings([b"2", b"3"]), B], 1)


def test_a_run_that_asks_for_nothing(opened: Callable[..., Session]) -> None:
    session = opened(model("graph.pb"), "a b", "c")
    assert refusal(session.run, [], 0) == "Must specify at least one target to fetch or execute."
    assert refusal(session.run, [A, B], 0) == "Must specify at least one target to fetch or execute."


def test_too_few_and_too_many_inputs(opened: Callable[..., Session]) -> None:
    session = opened(model("graph.pb"), "a b", "c")
    assert refusal(session.run, [A], 1) == "You must feed a value for placeholder tensor 'b' with dtype float32"
    assert refusal(session.run, [A, B, A], 1) == "ERR Expected 2 inputs but got 3"


def test_placeholders_of_a_fixed_batch_take_other_batches(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    blob = graph(lambda tf1: tf1.add(tf1.placeholder(tf1.float32, [1, 2], name="x"), 1.0, name="y"))
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(opened(blob, "x", "y").run([FakeTensor(rows)], 1)[0], rows + 1)


def test_what_does_not_match_a_batch_is_left_to_the_caller(opened: Callable[..., Session]) -> None:
    (first,) = opened(model("first_row.pb"), "x", "first").run([F([1, 2], [3, 4])], 1)
    assert first.tolist() == [[1, 2]]


class Aligned:
    """A FLOAT tensor at a multiple of 64 bytes, which TensorFlow uses in place."""

    dtype = "FLOAT"

    def __init__(self, n: int) -> None:
        room = np.zeros(4 * n + 64, np.uint8)
        start = -room.ctypes.data % 64
        self.memory = room[start : start + 4 * n].view(np.float32)
        self.shape, self.nbytes = (n,), 4 * n

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        view = self.memory.view()
        view.flags.writeable = False
        return view


def test_a_graph_cannot_write_to_its_inputs(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    blob = graph(lambda tf1: tf1.exp(tf1.add(tf1.placeholder(tf1.float32, name="x"), 1.0), name="y"))
    tensor = Aligned(1000)
    (out,) = opened(blob, "x", "y").run([tensor], 1)
    assert not tensor.memory.any() and out.all()


def test_runs_side_by_side_do_not_mix(opened: Callable[..., Session]) -> None:
    session = opened(model("graph.pb"), "a b", "c")

    def work(worker: int) -> bool:
        mine, square = FakeTensor(np.full(100, worker, np.float32)), [worker * worker] * 100
        return all(session.run([mine, mine], 1)[0].tolist() == square for _ in range(300))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_sessions_side_by_side_do_not_mix(opened: Callable[..., Session]) -> None:
    product, double = opened(model("graph.pb"), "a b", "c"), opened(model("minimal.pb"), "x", "y")
    for _ in range(100):
        assert product.run([A, B], 1)[0].tolist() == [6, 15]
        assert double.run([F([1, 2])], 1)[0].tolist() == [[2, 4]]


# ---- settings and warm-up --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "intra", "inter"),
    [(Settings(intra_op=3), 3, 1), (Settings(inter_op=2), None, 2), (Settings(intra_op=1, inter_op=4), 1, 4)],
)
def test_threads_are_the_sessions_own(opened: Callable[..., Session], settings: Settings, intra: int | None, inter: int) -> None:
    session = opened(model("graph.pb"), "a b", "c", settings=settings)
    config = session._session._config  # type: ignore[attr-defined]
    assert config.use_per_session_threads and config.inter_op_parallelism_threads == inter
    assert intra is None or config.intra_op_parallelism_threads == intra
    assert session.run([A, B], 1)[0].tolist() == [6, 15]


def test_closing_a_session_ends_its_threads(opened: Callable[..., Session], backend: Backend) -> None:
    spec = ModelSpec("key", "CPU", ("a", "b"), ("c",))
    backend.open(model("graph.pb"), spec, Settings(inter_op=4)).close()
    before = len(list(Path("/proc/self/task").iterdir()))
    for _ in range(3):
        session = backend.open(model("graph.pb"), spec, Settings(inter_op=4))
        session.run([A, B], 1)
        session.close()
        del session
    assert len(list(Path("/proc/self/task").iterdir())) <= before + 1


def test_a_session_has_run_before_it_is_handed_out(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from redisai_py.backends import tensorflow

    fed = []
    monkeypatch.setattr(tensorflow, "zeros", lambda tensor: fed.append(tensor.op.name) or np.zeros((1, 64), np.float32))
    blob = (ROOT / "examples" / "models" / "digits.pb").read_bytes()
    backend.open(blob, ModelSpec("key", "CPU", ("x",), ("probabilities",)), SETTINGS).close()
    assert fed == ["x"]


@pytest.mark.parametrize("v2_loops", [False, True])
def test_a_loop_without_end_can_be_stored(opened: Callable[..., Session], graph: Callable[..., bytes], v2_loops: bool) -> None:
    def make(tf1: Any) -> None:
        x = tf1.placeholder(tf1.float32, [None], name="x")
        out = tf1.while_loop(lambda _: tf1.constant(True), lambda value: [value + 1], [x])
        tf1.identity(out[0] if isinstance(out, list | tuple) else out, name="y")

    assert opened(graph(make, v2_loops=v2_loops), "x", "y").inputs == ["x"]


@pytest.mark.parametrize("v2_loops", [False, True])
def test_a_loop_with_an_end_runs(opened: Callable[..., Session], graph: Callable[..., bytes], v2_loops: bool) -> None:
    def make(tf1: Any) -> None:
        x = tf1.placeholder(tf1.float32, [], name="x")
        out = tf1.while_loop(lambda value: value < 10, lambda value: [value + 3], [x])
        tf1.identity(out[0] if isinstance(out, list | tuple) else out, name="y")

    assert opened(graph(make, v2_loops=v2_loops), "x", "y").run([FakeTensor(1, "FLOAT")], 1)[0] == 10


def test_a_queue_that_stays_empty_can_be_stored(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    blob = graph(lambda tf1: tf1.identity(tf1.FIFOQueue(1, tf1.float32).dequeue(), name="y"))
    assert opened(blob, "", "y").outputs == ["y"]


def test_threads_run_while_a_graph_does(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    """A run gives the interpreter lock away."""
    blob = graph(lambda tf1: tf1.reduce_sum(tf1.linalg.inv(tf1.placeholder(tf1.float32, [None, None], name="x")), name="y"))
    session = opened(blob, "x", "y")
    tensor = FakeTensor(np.eye(1200, dtype=np.float32))
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


# ---- files and other dangers -----------------------------------------------------------------------------------------------------------


def test_the_fixtures_that_touch_files_are_refused(opened: Callable[..., Session]) -> None:
    assert refusal(opened, model("evil_read_file.pb"), "path", "content") == "ERR op ReadFile is not allowed: it reads or writes files"
    assert refusal(opened, model("evil_write_file.pb"), "content", "done") == "ERR op WriteFile is not allowed: it reads or writes files"


def test_a_constant_of_another_type_than_it_says_is_refused(opened: Callable[..., Session], tf: Any) -> None:
    """As an index of a StridedSlice it is a failed check in the library, which ends the process."""
    definition = tf.compat.v1.GraphDef.FromString(model("first_row.pb"))
    (stack,) = [node for node in definition.node if node.name == "strided_slice/stack_2"]
    stack.attr["value"].tensor.dtype = tf.float64.as_datatype_enum
    text = refusal(opened, definition.SerializeToString(), "x", "first")
    assert text == "ERR the values of constant strided_slice/stack_2 are of another type than it says"


def test_every_refused_operator_is_refused_in_a_graph(backend: Backend, opened: Callable[..., Session], tf: Any) -> None:
    """One graph per operator of the registry's refused ones; the check comes before the import, so arguments are not needed."""
    for operator, reason in backend._library.refused.items():  # type: ignore[attr-defined]
        definition = tf.compat.v1.GraphDef()
        definition.node.add(name="x", op=operator)
        assert refusal(opened, definition.SerializeToString(), "", "x") == f"ERR op {operator} is not allowed: {reason}"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    file = tmp_path / "canary"
    file.write_text("secret")
    return file


READERS: dict[str, Callable[[Any, str], Any]] = {
    "ReadFile": lambda tf1, path: tf1.io.read_file(path),
    "MatchingFiles": lambda tf1, path: tf1.io.matching_files(path),
    "ImmutableConst": lambda tf1, path: tf1.raw_ops.ImmutableConst(dtype=tf1.uint8, shape=[6], memory_region_name=path),
    "WholeFileReaderV2": lambda tf1, path: tf1.WholeFileReader().read(tf1.train.string_input_producer([path])),
    "TextLineDataset": lambda tf1, path: tf1.raw_ops.TextLineDataset(filenames=path, compression_type="", buffer_size=0),
    "TFRecordDataset": lambda tf1, path: tf1.raw_ops.TFRecordDataset(filenames=path, compression_type="", buffer_size=0),
    "SqlDataset": lambda tf1, path: tf1.raw_ops.SqlDataset(
        driver_name="sqlite", data_source_name=path, query="select 1", output_types=[tf1.int32], output_shapes=[[]]
    ),
    "RestoreV2": lambda tf1, path: tf1.raw_ops.RestoreV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf1.float32])[0],
    "InitializeTableFromTextFileV2": lambda tf1, path: tf1.lookup.StaticHashTable(
        tf1.lookup.TextFileInitializer(path, tf1.string, 0, tf1.int64, 1), -1
    ).lookup(tf1.constant(["x"])),
    "LoadDataset": lambda tf1, path: tf1.raw_ops.LoadDataset(
        path=path, reader_func_other_args=[], output_types=[tf1.int32], output_shapes=[[]], reader_func=identity_function(tf1)
    ),
}

WRITERS: dict[str, Callable[[Any, str], Any]] = {
    "WriteFile": lambda tf1, path: tf1.io.write_file(path, "x"),
    "SaveV2": lambda tf1, path: tf1.raw_ops.SaveV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[tf1.constant(1.0)]),
    "MergeV2Checkpoints": lambda tf1, path: tf1.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=["/x"], destination_prefix=path),
    "PrintV2": lambda tf1, path: tf1.raw_ops.PrintV2(input="x", output_stream=f"file://{path}"),
    "SummaryWriter": lambda tf1, path: tf1.raw_ops.SummaryWriter(),
    "DebugIdentityV2": lambda tf1, path: tf1.raw_ops.DebugIdentityV2(input=tf1.constant(1.0), debug_urls=[f"file://{path}"]),
    "DatasetToTFRecord": lambda tf1, path: tf1.raw_ops.DatasetToTFRecord(
        input_dataset=tf1.data.Dataset.from_tensors("x")._variant_tensor, filename=path, compression_type=""
    ),
}


def identity_function(tf1: Any) -> Any:
    return tf1.function(lambda x: x).get_concrete_function(tf1.TensorSpec([], tf1.variant))


@pytest.mark.parametrize("operator", READERS | WRITERS)
def test_a_graph_of_each_class_is_refused_and_the_canary_is_untouched(
    opened: Callable[..., Session], tf: Any, canary: Path, operator: str
) -> None:
    target = str(canary) if operator in READERS else str(canary) + ".written"
    with tf.Graph().as_default() as made:
        (READERS | WRITERS)[operator](tf.compat.v1, target)
    blob = made.as_graph_def().SerializeToString()
    assert any(node.op.startswith(operator) for node in made.as_graph_def().node)
    assert refusal(opened, blob, "", made.get_operations()[-1].name).startswith(f"ERR op {operator}")
    assert canary.read_text() == "secret" and [one.name for one in canary.parent.iterdir()] == ["canary"]


def test_reading_in_the_shape_of_a_tensor_is_refused_before_the_import(
    opened: Callable[..., Session], graph: Callable[..., bytes], canary: Path
) -> None:
    """Importing a graph evaluates constant shapes, so a check after it would be too late."""

    def make(tf1: Any) -> None:
        size = tf1.strings.length(tf1.io.read_file(str(canary)))
        tf1.reshape(tf1.placeholder(tf1.float32, name="x"), [size], name="y")

    assert refusal(opened, graph(make), "x", "y") == "ERR op ReadFile is not allowed: it reads or writes files"


def test_a_file_operator_inside_a_library_function_is_refused(opened: Callable[..., Session], tf: Any, canary: Path) -> None:
    @tf.function(input_signature=[])
    def read() -> Any:
        return tf.io.read_file(str(canary))

    with tf.Graph().as_default() as made:
        tf.identity(read(), name="y")
    definition = made.as_graph_def()
    assert "ReadFile" not in {node.op for node in definition.node}
    assert refusal(opened, definition.SerializeToString(), "", "y") == "ERR op ReadFile is not allowed: it reads or writes files"


def test_with_the_switch_the_same_graphs_run(opened: Callable[..., Session], graph: Callable[..., bytes], canary: Path) -> None:
    (content,) = opened(model("evil_read_file.pb"), "path", "content", settings=TRUSTING).run([FakeStrings([str(canary).encode()], ())], 1)
    assert content.item() == b"secret"


@pytest.mark.parametrize("operator", ["PyFunc", "EagerPyFunc", "Abort", "DebugIdentityV2"])
def test_some_operators_stay_refused_with_the_switch(opened: Callable[..., Session], tf: Any, operator: str) -> None:
    definition = tf.compat.v1.GraphDef()
    definition.node.add(name="x", op=operator)
    assert refusal(opened, definition.SerializeToString(), "", "x", settings=TRUSTING).startswith(f"ERR op {operator} is not allowed: ")


def test_operators_that_only_sometimes_touch_files(opened: Callable[..., Session], graph: Callable[..., bytes]) -> None:
    def printing(tf1: Any) -> None:
        with tf1.control_dependencies([tf1.raw_ops.PrintV2(input="", output_stream="log(info)", end="")]):
            tf1.constant(1.0, name="y")

    assert opened(graph(printing), "", "y").run([], 1)[0] == 1
    for source, allowed in (("local://", True), ("bytes://abc", True), ("/etc/passwd", False)):
        definition = graph(
            lambda tf1, source=source: tf1.raw_ops.DecodeProtoV2(
                bytes=[b""], message_type="m", field_names=["f"], output_types=[tf1.int32], descriptor_source=source
            )
        )
        found = tf_ops.refused(parse(opened, definition), {})
        assert found == (None if allowed else ("DecodeProtoV2", tf_ops.FILES))


def parse(_: Any, definition: bytes) -> Any:
    from tensorflow.core.framework.graph_pb2 import GraphDef

    return GraphDef.FromString(definition)


# ---- the operator tables against the installed registry ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tf: Any) -> list[Any]:
    from tensorflow.core.framework.op_def_pb2 import OpList
    from tensorflow.python.client import pywrap_tf_session as session

    return list(OpList.FromString(session.TF_GetBuffer(session.TF_GetAllOpList())).op)


def op_def(name: str, *arguments: str, stateful: bool = False) -> Any:
    from tensorflow.core.framework.op_def_pb2 import OpDef

    made = OpDef(name=name, is_stateful=stateful)
    for argument in arguments:
        made.input_arg.add(name=argument)
    return made


def test_the_tables_name_operators_that_exist(registry: list[Any], tf: Any) -> None:
    if tf.__version__ != "2.21.0":
        pytest.skip("the tables were made for 2.21.0")
    known = {op.name for op in registry}
    named = set().union(*tf_ops.REFUSED.values(), tf_ops.STATEFUL, tf_ops.HARMLESS, tf_ops.CONDITIONS)
    assert named - known == set()


def test_the_tables_do_not_overlap() -> None:
    tables = [*tf_ops.REFUSED.values(), tf_ops.STATEFUL, tf_ops.HARMLESS, frozenset(tf_ops.CONDITIONS)]
    assert sum(map(len, tables)) == len(frozenset().union(*tables))


def test_every_stateful_operator_is_refused_or_was_looked_at(registry: list[Any]) -> None:
    verdicts = tf_ops.verdicts(registry)
    for op in registry:
        if op.is_stateful:
            assert op.name in verdicts or op.name in tf_ops.STATEFUL or op.name in tf_ops.CONDITIONS, op.name


def test_harmless_entries_are_needed(registry: list[Any]) -> None:
    """An entry that no rule would refuse hides a mistake in the rule."""
    for op in registry:
        if op.name in tf_ops.HARMLESS:
            assert not op.is_stateful and any(map(tf_ops.SUSPECT.search, tf_ops.words(op))), op.name
        if op.name in tf_ops.STATEFUL:
            assert op.is_stateful, op.name


#: Found another way than SUSPECT: by what TensorFlow's own documentation of the operators calls files, and by hand.
DANGEROUS = tf_ops._names("""
ReadFile WriteFile MatchingFiles Save SaveV2 SaveSlices Restore RestoreV2 RestoreSlice MergeV2Checkpoints WholeFileReader WholeFileReaderV2
TextLineReader TextLineReaderV2 TFRecordReader TFRecordReaderV2 FixedLengthRecordReader FixedLengthRecordReaderV2 LMDBReader TextLineDataset
TFRecordDataset FixedLengthRecordDataset FixedLengthRecordDatasetV2 CSVDataset CSVDatasetV2 SqlDataset LMDBDataset MatchingFilesDataset
CacheDataset CacheDatasetV2 SnapshotDataset SnapshotDatasetV2 SaveDataset SaveDatasetV2 LoadDataset DatasetToTFRecord LoadAndRemapMatrix
GenerateVocabRemapping InitializeTableFromTextFile InitializeTableFromTextFileV2 RecordInput Skipgram ImmutableConst PyFunc PyFuncStateless
EagerPyFunc Abort RpcCall RpcClient RpcServer DataServiceDataset DataServiceDatasetV4 RegisterDataset DebugIdentity DebugIdentityV2
CreateSummaryFileWriter CreateSummaryDbWriter WriteSummary WriteGraphSummary FileSystemSetConfiguration DistributedSave DatasetFromGraph
CalibrationStatisticsSaver MlirPassthroughOp XlaCustomCallV2 XlaCallModule
""")


def test_dangerous_operators_are_refused(registry: list[Any]) -> None:
    known, verdicts = {op.name for op in registry}, tf_ops.verdicts(registry)
    assert [name for name in DANGEROUS if name in known and name not in verdicts] == []


def test_whatever_is_named_after_files_is_refused_or_was_looked_at(registry: list[Any]) -> None:
    verdicts = tf_ops.verdicts(registry)
    for op in registry:
        if any(
            part in op.name
            for part in ("File", "Save", "Restore", "Checkpoint", "Reader", "Writer", "PyFunc", "Rpc", "Sql", "Lmdb", "LMDB")
        ):
            assert op.name in verdicts or op.name in tf_ops.HARMLESS, op.name


def test_what_a_model_needs_is_not_refused(registry: list[Any]) -> None:
    needed = tf_ops._names("""
    Placeholder Const Identity MatMul Conv2D BiasAdd Relu Softmax Reshape StridedSlice GatherV2 While StatelessWhile If PartitionedCall
    StatefulPartitionedCall TensorArrayV3 TensorListReserve HashTableV2 LookupTableFindV2 LookupTableImportV2 VarHandleOp ReadVariableOp
    RandomUniform ParseExampleV2 DecodeJpeg StringSplitV2 Assert CudnnRNNV3 NonMaxSuppressionV5 FusedBatchNormV3 QuantizeV2 RegexReplace
    """)
    verdicts = tf_ops.verdicts(registry)
    assert [name for name in needed if name in verdicts or name not in {op.name for op in registry}] == []


def test_an_operator_of_a_later_version_fails_closed(tf: Any) -> None:
    verdicts = tf_ops.verdicts(
        [
            op_def("TeleportV9", "tensor", stateful=True),
            op_def("TeleportFromPath", "tensor"),
            op_def("TeleportV9Stateless", "tensor", "file_pattern"),
            op_def("TeleportTensor", "tensor", "axis"),
        ]
    )
    assert set(verdicts) == {"TeleportV9", "TeleportFromPath", "TeleportV9Stateless"}


# ---- zipped SavedModels ------------------------------------------------------------------------------------------------------------------


def zipped(folder: Path, prefix: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(folder)))
    return out.getvalue()


@pytest.fixture
def affine(tf: Any, tmp_path: Path) -> Path:
    """x @ w + b, and x @ w, saved by TF 2."""

    class Affine(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.w, self.b = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="w"), tf.Variable([10.0, 20.0], name="b")

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            return {"sum": x @ self.w + self.b, "product": x @ self.w}

    module = Affine()
    tf.saved_model.save(module, str(tmp_path / "affine"), signatures=module.__call__)
    return tmp_path / "affine"


@pytest.mark.parametrize("prefix", ["", "affine/", "a/b/"])
def test_a_zipped_saved_model_shows_its_signature(opened: Callable[..., Session], affine: Path, prefix: str) -> None:
    session = opened(zipped(affine, prefix))
    assert (session.inputs, session.outputs) == (["x"], ["product", "sum"])
    product, total = session.run([F([1, 1])], 2)
    assert product.tolist() == [[4, 6]] and total.tolist() == [[14, 26]]


def test_names_choose_from_a_signature(opened: Callable[..., Session], affine: Path) -> None:
    (total,) = opened(zipped(affine), "x", "sum").run([F([1, 1], [0, 0])], 1)
    assert total.tolist() == [[14, 26], [10, 20]]


def test_names_may_be_those_of_the_graph(opened: Callable[..., Session], affine: Path) -> None:
    assert opened(zipped(affine), "serving_default_x", "sum").run([F([0, 0])], 1)[0].tolist() == [[10, 20]]


def test_unknown_names_of_a_saved_model(opened: Callable[..., Session], affine: Path) -> None:
    assert refusal(opened, zipped(affine), "z", "sum") == 'ERR Input node named "z" not found in TF graph.'
    assert refusal(opened, zipped(affine), "x", "z") == 'ERR Output node named "z" not found in TF graph'


def test_the_variables_became_constants(opened: Callable[..., Session], affine: Path) -> None:
    operators = {operation.type for operation in opened(zipped(affine))._session.graph.get_operations()}  # type: ignore[attr-defined]
    assert not operators & {"VarHandleOp", "ReadVariableOp", "VariableV2"}


def test_a_saved_model_of_tf_1(opened: Callable[..., Session], tf: Any, tmp_path: Path) -> None:
    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        x = tf1.placeholder(tf.float32, [None, 2], name="x")
        y = tf1.multiply(x, tf1.get_variable("v", initializer=np.float32([2, 3]), use_resource=False))
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            tf1.saved_model.simple_save(session, str(tmp_path / "one"), {"a": x}, {"b": y})
    assert opened(zipped(tmp_path / "one"), "a", "b").run([F([1, 1])], 1)[0].tolist() == [[2, 3]]


def save_table(tf: Any, folder: Path, initializer: Any) -> bytes:
    class Table(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
        def __call__(self, x: Any) -> Any:
            return self.table.lookup(x)

    module = Table()
    tf.saved_model.save(module, str(folder), signatures=module.__call__)
    return zipped(folder)


def test_tables_of_constants_are_filled(opened: Callable[..., Session], tf: Any, tmp_path: Path) -> None:
    keys = tf.lookup.KeyValueTensorInitializer(tf.constant(["a", "b"]), tf.constant([1, 2], tf.int64))
    session = opened(save_table(tf, tmp_path / "table", keys))
    assert session.run([FakeStrings([b"b", b"z"])], 1)[0].tolist() == [2, -1]


def vocabulary(tf: Any, folder: Path) -> Any:
    (folder / "vocabulary.txt").write_text("a\nb\n")
    index = tf.lookup.TextFileIndex
    return tf.lookup.TextFileInitializer(str(folder / "vocabulary.txt"), tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER)


def test_a_vocabulary_in_the_bundle_is_read(opened: Callable[..., Session], tf: Any, tmp_path: Path) -> None:
    session = opened(save_table(tf, tmp_path / "words", vocabulary(tf, tmp_path)))
    assert session.run([FakeStrings([b"b", b"z"])], 1)[0].tolist() == [1, -1]


def test_nothing_of_a_bundle_stays_on_disk(
    opened: Callable[..., Session], affine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    opened(zipped(affine))
    assert list(scratch.iterdir()) == []


def edited(folder: Path, change: Callable[[Any], None]) -> bytes:
    """The bundle with its saved_model.pb changed."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    file = folder / "saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    change(saved)
    file.write_bytes(saved.SerializeToString())
    return zipped(folder)


def test_restoring_reads_the_bundles_own_checkpoint_whatever_the_graph_says(
    opened: Callable[..., Session], affine: Path, tf: Any, tmp_path: Path
) -> None:
    """A graph that restores from a path of its choice gets the variables of its bundle."""
    shutil.copytree(affine / "variables", tmp_path / "elsewhere")

    def point_elsewhere(saved: Any) -> None:
        for function in saved.meta_graphs[0].graph_def.library.function:
            for node in function.node_def:
                if node.op == "RestoreV2":
                    node.input[0] = "elsewhere:output:0"
                    constant = function.node_def.add(name="elsewhere", op="Const")
                    constant.attr["dtype"].type = 7
                    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(str(tmp_path / "nowhere")))

    assert opened(edited(affine, point_elsewhere)).run([F([0, 0])], 2)[1].tolist() == [[10, 20]]


def test_a_saved_model_that_writes_while_it_serves_is_refused(opened: Callable[..., Session], affine: Path) -> None:
    def write(saved: Any) -> None:
        function = next(f for f in saved.meta_graphs[0].graph_def.library.function if "signature_wrapper" in f.signature.name)
        function.node_def.add(name="w", op="WriteFile")

    assert refusal(opened, edited(affine, write)) == "ERR op WriteFile is not allowed: it reads or writes files"


def test_what_a_bundle_holds_besides_its_signature_does_not_matter(opened: Callable[..., Session], affine: Path) -> None:
    """Every bundle can save itself; that part is never imported."""

    def add(saved: Any) -> None:
        saved.meta_graphs[0].graph_def.node.add(name="beside", op="WriteFile")

    assert opened(edited(affine, add)).outputs == ["product", "sum"]


def test_a_vocabulary_outside_the_bundle_is_refused(opened: Callable[..., Session], tf: Any, tmp_path: Path) -> None:
    save_table(tf, tmp_path / "words", vocabulary(tf, tmp_path))

    def escape(saved: Any) -> None:
        saved.meta_graphs[0].asset_file_def[0].filename = "../../vocabulary.txt"

    assert refusal(opened, edited(tmp_path / "words", escape)) == "Invalid SavedModel: an asset lies outside its folder"


def test_with_two_vocabularies_the_operator_is_refused(opened: Callable[..., Session], tf: Any, tmp_path: Path) -> None:
    save_table(tf, tmp_path / "words", vocabulary(tf, tmp_path))

    def double(saved: Any) -> None:
        assets = saved.meta_graphs[0].asset_file_def
        assets.add().CopyFrom(assets[0])

    blob = edited(tmp_path / "words", double)
    assert refusal(opened, blob) == "ERR op InitializeTableFromTextFileV2 is not allowed: it reads or writes files"
    assert opened(blob, settings=TRUSTING).run([FakeStrings([b"b"])], 1)[0].tolist() == [1]


def test_member_names_cannot_leave_the_scratch_folder(opened: Callable[..., Session], affine: Path, tmp_path: Path) -> None:
    blob = io.BytesIO(zipped(affine))
    with zipfile.ZipFile(blob, "a") as archive:
        archive.writestr("../../../../../../../../../../../.." + str(tmp_path / "escaped"), "x")
        archive.writestr(str(tmp_path / "absolute"), "x")
    opened(blob.getvalue())
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "absolute").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused(
    opened: Callable[..., Session], affine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf_saved_model, "UNPACKED_LIMIT", 1000)
    assert refusal(opened, zipped(affine)) == "ERR the SavedModel unpacks to more than 1000 bytes"


def test_truncated_and_flipped_bundles_are_refused_or_run(opened: Callable[..., Session], affine: Path) -> None:
    blob = zipped(affine)
    for length in range(0, len(blob), len(blob) // 40):
        assert refusal(opened, blob[:length], "x", "sum")
    for seed in range(60):
        chance, broken = random.Random(seed), bytearray(blob)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        try:
            opened(bytes(broken)).run([F([1, 1])], 2)
        except BackendError as error:
            assert str(error) and "\n" not in str(error)


def test_a_saved_model_without_a_serving_graph(opened: Callable[..., Session], affine: Path) -> None:
    def untag(saved: Any) -> None:
        saved.meta_graphs[0].meta_info_def.tags[:] = ["train"]

    assert refusal(opened, edited(affine, untag)) == "Invalid SavedModel: it has no graph tagged serve"


def test_a_saved_model_without_a_signature(opened: Callable[..., Session], affine: Path) -> None:
    def unsign(saved: Any) -> None:
        saved.meta_graphs[0].signature_def.clear()

    assert refusal(opened, edited(affine, unsign)) == "Invalid SavedModel: it has no signature serving_default"


def test_a_saved_model_whose_graph_does_not_parse(opened: Callable[..., Session], affine: Path) -> None:
    (affine / "saved_model.pb").write_bytes(b"\xff\xff")
    assert refusal(opened, zipped(affine)) == "Invalid SavedModel: saved_model.pb cannot be parsed"


# ---- loading -----------------------------------------------------------------------------------------------------------------------------


def test_importing_the_backend_does_not_import_the_library() -> None:
    done = child("import sys; from redisai_py.backends import backend_class; backend_class('TF'); print('tensorflow' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_without_the_package_loading_raises_import_error() -> None:
    done = child(
        """
        import sys
        from redisai_py.backends import backend_class
        from redisai_py.backends.base import Settings
        from redisai_py.testing import FakeMeter
        sys.modules["tensorflow"] = None
        try:
            backend_class("TF").load(Settings(), FakeMeter())
        except ImportError as error:
            print("ImportError", backend_class("TF").package)
        """
    )
    assert done.stdout.split() == ["ImportError", "tensorflow-cpu"], done.stderr


def test_a_failed_import_keeps_what_the_library_said() -> None:
    from redisai_py.backends.quiet import quiet

    with pytest.raises(ImportError) as caught, quiet():
        subprocess.run(["sh", "-c", "echo cannot map libfoo.so >&2"], check=True)
        raise ImportError("broken")
    assert caught.value.__notes__ == ["cannot map libfoo.so"]


def test_nothing_is_written_to_standard_error(tmp_path: Path) -> None:
    done = child(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from redisai_py.backends import backend_class
        from redisai_py.backends.base import ModelSpec, Settings
        from redisai_py.errors import BackendError
        from redisai_py.testing import FakeMeter, FakeTensor

        backend = backend_class("TF").load(Settings(), FakeMeter())
        x = FakeTensor(np.ones((1, 64), np.float32))
        for blob, inputs, outputs in (
            ("examples/models/digits.pb", "x", "probabilities"),
            ("tests/models/graph.pb", "a b", "c"),
            ("tests/models/cnn.pb", "x", "probabilities"),
            ("tests/models/graph.pb", "z", "c"),
            ("tests/models/evil_read_file.pb", "path", "content"),
            ("tests/models/minimal.pt", "x", "y"),
        ):
            spec = ModelSpec("key", "CPU", tuple(inputs.split()), tuple(outputs.split()))
            try:
                session = backend.open(Path(blob).read_bytes(), spec, Settings())
                for tensor in (x, FakeTensor(np.ones(3, np.float64)), FakeTensor(np.ones((2, 3), np.float32))):
                    try:
                        session.run([tensor] + [x] * (len(session.inputs) - 1), 1)
                    except BackendError:
                        pass
                session.close()
            except BackendError:
                pass
        print("done")
        """
    )
    assert (done.stdout.strip(), done.stderr) == ("done", "")
