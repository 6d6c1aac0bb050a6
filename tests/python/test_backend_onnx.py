"""The ONNX backend, driven without a server: names, tensors, errors, memory, the end of runs, and what it refuses."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redisai_py.backends import backend_class, onnx_wire
from redisai_py.backends import onnxruntime as onnxruntime_backend
from redisai_py.backends import threads as threads_module
from redisai_py.backends.base import ModelSpec, Session, Settings
from redisai_py.errors import BackendError, Terminated
from redisai_py.tensor import DTYPES
from redisai_py.testing import FakeMeter, FakeStrings, FakeTensor

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

pytestmark = pytest.mark.needs_onnx

SETTINGS = Settings()
ELEMENT = {
    "FLOAT": TensorProto.FLOAT,
    "DOUBLE": TensorProto.DOUBLE,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "BOOL": TensorProto.BOOL,
    "STRING": TensorProto.STRING,
}


# ---- making models -------------------------------------------------------------------------------------------------------------------


def value(name: str, shape: Any = (None, 2), element: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, element, None if shape is None else list(shape))


def proto(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Any = (), functions: Any = ()) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(weights))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def model(*arguments: Any, **named: Any) -> bytes:
    return bytes(proto(*arguments, **named).SerializeToString())


def op(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def weight(name: str, array: Any) -> Any:
    return onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)


#: the smallest model there is, with a weight of 24 bytes and names of one letter
MUL = model([op("Mul", "X W", "Y")], [value("X", (3, 2))], [value("Y", (3, 2))], [weight("W", [[1, 2], [3, 4], [5, 6]])])
ADD = model([op("Add", "a b", "c")], [value("a"), value("b")], [value("c")])
IDENTITY = {name: model([op("Identity", "x", "y")], [value("x", None, e)], [value("y", None, e)]) for name, e in ELEMENT.items()}


def loop(condition: bool = True) -> bytes:
    """Counts down from x for ever when x is positive, and not at all otherwise."""
    body = helper.make_graph(
        [op("Add", "v one", "w"), op("Identity", "c", "d")],
        "body",
        [value("i", (), TensorProto.INT64), value("c", (), TensorProto.BOOL), value("v", (1,))],
        [value("d", (), TensorProto.BOOL), value("w", (1,))],
        [weight("one", [1])],
    )
    nodes = [op("Greater", "x zero", "flag"), op("Squeeze", "flag", "go"), helper.make_node("Loop", ["", "go", "x"], ["y"], body=body)]
    return model(nodes, [value("x", (1,))], [value("y", (1,))], [weight("zero", [0])])


LOOP = loop()
FOR_EVER, AT_ONCE = FakeTensor([1], "FLOAT"), FakeTensor([-1], "FLOAT")


# ---- driving the backend -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


@pytest.fixture
def opened(meter: FakeMeter) -> Iterator[Callable[..., Session]]:
    backend = backend_class("ONNX").load(SETTINGS, meter)
    sessions: list[Session] = []

    def open_(blob: bytes, device: str = "CPU", settings: Settings = SETTINGS) -> Session:
        sessions.append(backend.open(blob, ModelSpec("key", device), settings))
        return sessions[-1]

    yield open_
    for session in sessions:
        session.close()
    assert meter.memory == 0


Run = Callable[..., list[Any]]


@pytest.fixture
def run(opened: Callable[..., Session]) -> Run:
    def run_(blob: bytes | Session, *inputs: Any, n: int = 1) -> list[Any]:
        session = opened(blob) if isinstance(blob, bytes) else blob
        return list(session.run(inputs, n))

    return run_


def refused(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(BackendError) as caught:
        call(*arguments, **named)
    return str(caught.value)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- what a session says about itself ------------------------------------------------------------------------------------------------


def test_the_backend_names_itself() -> None:
    backend = backend_class("ONNX").load(SETTINGS, FakeMeter())
    assert (backend.name, backend.version, backend.package) == ("ONNX", ort.__version__, "onnxruntime")
    assert backend.batch_mismatch == "ERR Model did not generate the expected batch size"


def test_names_come_from_the_model(opened: Callable[..., Session]) -> None:
    session = opened(ADD)
    assert (tuple(session.inputs), tuple(session.outputs)) == (("a", "b"), ("c",))


def test_weights_listed_as_inputs_are_no_inputs(opened: Callable[..., Session]) -> None:
    blob = model([op("Mul", "X W", "Y")], [value("X"), value("W", (1,))], [value("Y")], [weight("W", [3])])
    assert tuple(opened(blob).inputs) == ("X",)


# ---- tensors in and out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_goes_in_and_comes_out(run: Run, dtype: str) -> None:
    given = FakeTensor([[0, 1, 1], [1, 0, 1]], dtype)
    (found,) = run(IDENTITY[dtype], given)
    assert found.dtype == DTYPES[dtype]
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, given.memory)


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ([b"a", b"", b"longer than the others", "£€😀".encode()], (4,)),
        ([b"a", b"b", b"c", b"d"], (2, 2)),
        ([b"in\0side"], ()),
        ([], (0, 3)),
    ],
)
def test_strings_go_in_and_come_out(run: Run, elements: list[bytes], shape: tuple[int, ...]) -> None:
    (found,) = run(IDENTITY["STRING"], FakeStrings(elements, shape))
    assert found.shape == shape
    assert found.dtype == object
    assert found.ravel().tolist() == elements


def test_strings_that_are_not_utf8_are_refused(run: Run) -> None:
    assert refused(run, IDENTITY["STRING"], FakeStrings([b"\xff\xfe"])) == "ERR ONNX strings are UTF-8, and an input or output is not"


def test_a_mixed_model_takes_strings_and_numbers(run: Run) -> None:
    blob = model(
        [op("Identity", "s", "t"), op("Add", "x x", "y"), op("Identity", "s", "u")],
        [value("x", None), value("s", None, TensorProto.STRING)],
        [value("t", None, TensorProto.STRING), value("y", None), value("u", None, TensorProto.STRING)],
    )
    t, y, u = run(blob, FakeTensor([1, 2], "FLOAT"), FakeStrings([b"k"]), n=3)
    assert (t.tolist(), y.tolist(), u.tolist()) == ([b"k"], [2, 4], [b"k"])


@pytest.mark.parametrize(
    ("blob", "tensor", "words"),
    [
        (IDENTITY["FLOAT"], FakeTensor([1], "DOUBLE"), "Unexpected input data type. Actual: (tensor(double)) , expected: (tensor(float))"),
        (IDENTITY["FLOAT"], FakeStrings([b"1"]), "Unexpected input data type. Actual: (tensor(string)) , expected: (tensor(float))"),
        (MUL, FakeStrings([b"1"] * 6, (3, 2)), "Unexpected input data type. Actual: (tensor(string)) , expected: (tensor(float))"),
        (IDENTITY["STRING"], FakeTensor([1], "INT8"), "Unexpected input data type. Actual: (tensor(int8)) , expected: (tensor(string))"),
        (MUL, FakeTensor(np.zeros((3, 3), np.float32)), "Got invalid dimensions for input: X for the following indices\n index: 1 Got: 3"),
        (MUL, FakeTensor([1], "FLOAT"), "Invalid rank for input: X Got: 1 Expected: 2"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_librarys_words(run: Run, blob: bytes, tensor: Any, words: str) -> None:
    assert refused(run, blob, tensor).startswith(words)


@pytest.mark.parametrize(
    ("element", "name"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.UINT32, "uint32"),
        (TensorProto.UINT64, "uint64"),
        (TensorProto.BFLOAT16, "bfloat16"),
    ],
)
def test_outputs_without_a_dtype_on_the_wire_are_errors(run: Run, element: int, name: str) -> None:
    blob = model([op("Cast", "x", "y", to=element)], [value("x", None)], [value("y", None, element)])
    line = refused(run, blob, FakeTensor([1], "FLOAT"))
    assert line == f"ERR the model returned a tensor of type {name}, which has no RedisAI dtype"


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        (op("ReduceSum", "x", "y", keepdims=0), ()),
        (op("NonZero", "x", "y"), (2, 0)),
    ],
)
def test_scalar_and_empty_outputs_are_fine(run: Run, node: Any, shape: tuple[int, ...]) -> None:
    element = TensorProto.INT64 if node.op_type == "NonZero" else TensorProto.FLOAT
    blob = model([node], [value("x", None)], [value("y", None, element)])
    assert run(blob, FakeTensor(np.zeros((2, 2), np.float32)))[0].shape == shape


def test_empty_and_scalar_inputs_are_fine(run: Run) -> None:
    assert run(IDENTITY["FLOAT"], FakeTensor(np.zeros((0, 4), np.float32)))[0].shape == (0, 4)
    assert run(IDENTITY["FLOAT"], FakeTensor(np.float32(2)))[0] == 2


def test_all_inputs_and_all_outputs_are_needed(run: Run, opened: Callable[..., Session]) -> None:
    x = FakeTensor([[1, 2]], "FLOAT")
    session = opened(ADD)
    assert refused(run, session, x) == "ERR Expected 2 inputs but got 1"
    assert refused(run, session, x, x, x) == "ERR Expected 2 inputs but got 3"
    assert refused(run, session, x, x, n=2) == "ERR Expected 1 outputs but got 2"
    assert refused(run, session, x, x, n=0) == "ERR Expected 1 outputs but got 0"
    assert run(session, x, x)[0].tolist() == [[2, 4]]


def test_inputs_are_bound_by_position(run: Run) -> None:
    blob = model([op("Sub", "a b", "c")], [value("a"), value("b")], [value("c")])
    assert run(blob, FakeTensor([[5, 5]], "FLOAT"), FakeTensor([[1, 2]], "FLOAT"))[0].tolist() == [[4, 3]]


def test_inputs_stay_as_they_are_and_results_repeat(run: Run, opened: Callable[..., Session]) -> None:
    rows = np.random.default_rng(0).random((4, 8), np.float32)
    weights = [weight("A", np.random.default_rng(1).random((8, 8))), weight("B", np.random.default_rng(2).random((8, 8)))]
    blob = model(
        [op("MatMul", "x A", "h"), op("Relu", "h", "r"), op("MatMul", "r B", "y")], [value("x", (None, 8))], [value("y", None)], weights
    )
    session, x = opened(blob), FakeTensor(rows)
    results = {run(session, x)[0].tobytes() for _ in range(20)}
    assert len(results) == 1
    np.testing.assert_array_equal(x.memory, rows)


def test_one_session_serves_several_threads(opened: Callable[..., Session]) -> None:
    session = opened(ADD)
    tensors = [FakeTensor(np.full((3, 2), i, np.float32)) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: session.run([tensors[i % 8], tensors[i % 7]], 1)[0][0, 0], range(400)))
    assert found == [i % 8 + i % 7 for i in range(400)]


# ---- classic machine learning --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iris() -> tuple[Any, Any]:
    return pytest.importorskip("sklearn.datasets").load_iris(return_X_y=True)


def from_sklearn(estimator: Any, **options: Any) -> bytes:
    skl2onnx = pytest.importorskip("skl2onnx")
    from skl2onnx.common.data_types import FloatTensorType

    made = skl2onnx.convert_sklearn(
        estimator, initial_types=[("X", FloatTensorType([None, 4]))], target_opset={"": 17, "ai.onnx.ml": 3}, options=options
    )
    made.ir_version = 8
    return bytes(made.SerializeToString())


def test_a_linear_regression_of_scikit_learn_runs(run: Run, iris: tuple[Any, Any]) -> None:
    from sklearn.linear_model import LinearRegression

    x, y = iris
    estimator = LinearRegression().fit(x, y)
    (found,) = run(from_sklearn(estimator), FakeTensor(x.astype(np.float32)))
    np.testing.assert_allclose(found[:, 0], estimator.predict(x), atol=1e-4)


def test_classes_come_out_and_maps_stay_unset(
    run: Run, opened: Callable[..., Session], iris: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = iris
    estimator = LogisticRegression(max_iter=500).fit(x, y)
    session = opened(from_sklearn(estimator))
    assert tuple(session.outputs) == ("output_label", "output_probability")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            labels, probabilities = run(session, FakeTensor(x.astype(np.float32)), n=2)
            assert labels.tolist() == estimator.predict(x).tolist()
            assert probabilities is None
    assert [record.getMessage() for record in caplog.records] == ["non-tensor output from ONNX models, ignoring (currently unsupported)"]


def test_a_model_without_any_tensor_output_runs(run: Run) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    blob = model([op("SequenceConstruct", "x x", "y")], [value("x", None)], [sequence])
    assert run(blob, FakeTensor([1], "FLOAT")) == [None]
    assert "Unexpected input data type" in refused(run, blob, FakeTensor([1], "INT8"))


# ---- ending a run --------------------------------------------------------------------------------------------------------------------


def start(session: Session, tensor: Any) -> tuple[threading.Thread, list[Any]]:
    """A run on a thread of its own, once it is under way; its result or exception ends up in the list."""
    results: list[Any] = []

    def body() -> None:
        try:
            results.append(session.run([tensor], 1))
        except BackendError as error:
            results.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    until(lambda: session._running)  # type: ignore[attr-defined]
    return thread, results


QUICK_WARM_UP = Settings(execution_timeout_ms=20)


def test_a_run_is_ended_and_the_next_one_is_not(run: Run, opened: Callable[..., Session]) -> None:
    session: Any = opened(LOOP, settings=QUICK_WARM_UP)
    for _ in range(3):
        thread, results = start(session, FOR_EVER)
        session.terminate(thread.ident)
        thread.join(20)
        assert isinstance(results[0], Terminated)
        assert "Exiting due to terminate flag being set to true" in str(results[0])
        assert not str(results[0]).startswith("[ONNXRuntimeError]")
        assert run(session, AT_ONCE)[0].tolist() == [-1]
    assert not session._running


def test_only_the_named_thread_is_ended(opened: Callable[..., Session]) -> None:
    session: Any = opened(LOOP, settings=QUICK_WARM_UP)
    first, first_results = start(session, FOR_EVER)
    second, second_results = start(session, FOR_EVER)
    until(lambda: len(session._running) == 2)
    session.terminate(second.ident)
    second.join(20)
    assert isinstance(second_results[0], Terminated)
    assert first.is_alive() and not first_results
    session.terminate(first.ident)
    first.join(20)


def test_a_late_end_touches_nobody(run: Run, opened: Callable[..., Session]) -> None:
    session: Any = opened(LOOP, settings=QUICK_WARM_UP)
    run(session, AT_ONCE)
    session.terminate(threading.get_ident())
    session.terminate(12345)
    assert run(session, AT_ONCE)[0].tolist() == [-1]


def test_an_end_that_meets_the_end_of_the_run_does_not_reach_the_next(opened: Callable[..., Session]) -> None:
    """The flag is set after the library returned but before the run has left: those options must not be used again."""
    session: Any = opened(ADD)
    library = session._run

    def ended_while_returning(*arguments: Any) -> Any:
        found = library(*arguments)
        session.terminate(threading.get_ident())
        return found

    session._run = ended_while_returning
    x = FakeTensor([[1, 2]], "FLOAT")
    assert session.run([x, x], 1)[0].tolist() == [[2, 4]]
    session._run = library
    assert session.run([x, x], 1)[0].tolist() == [[2, 4]]


def test_storing_a_model_that_never_returns_takes_no_longer_than_the_timeout(opened: Callable[..., Session]) -> None:
    body = helper.make_graph(
        [op("Identity", "c", "d"), op("Identity", "v", "w")],
        "body",
        [value("i", (), TensorProto.INT64), value("c", (), TensorProto.BOOL), value("v", (1,))],
        [value("d", (), TensorProto.BOOL), value("w", (1,))],
    )
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    blob = model([helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)], [value("x", (1,))], [value("y", (1,))], [true])
    began = time.monotonic()
    opened(blob, settings=Settings(execution_timeout_ms=100))
    assert time.monotonic() - began < 10


# ---- threads and optimisation --------------------------------------------------------------------------------------------------------

FIXED_ROWS = model([op("Add", "x x", "y")], [value("x", (None, 2))], [value("y", (None, 2))])
FREE_ROWS = model([op("Add", "x x", "y")], [value("x", (None, None))], [value("y", (None, None))])


@pytest.mark.parametrize(
    ("blob", "batchsize", "intra_op", "a_run_takes", "threads"),
    [
        (FIXED_ROWS, 0, 0, 0.0001, 1),
        (FIXED_ROWS, 64, 0, 0.0001, 4),  # 64 rows take 6.4 ms
        (FIXED_ROWS, 0, 0, 0.005, 4),
        (FREE_ROWS, 0, 0, 0.0001, 4),  # a made-up row says nothing about a real one
        (FIXED_ROWS, 0, 3, 0.0001, 3),
    ],
    ids=["light", "light, but in large batches", "heavy", "of unknown size", "configured"],
)
def test_a_light_model_runs_on_one_thread(
    monkeypatch: pytest.MonkeyPatch, meter: FakeMeter, blob: bytes, batchsize: int, intra_op: int, a_run_takes: float, threads: int
) -> None:
    clock = iter(np.arange(0, 1000) * a_run_takes)  # read at the beginning and at the end of each run
    monkeypatch.setattr(onnxruntime_backend.time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(threads_module.os, "sched_getaffinity", lambda pid: range(4))
    settings = Settings(intra_op=intra_op)
    session: Any = backend_class("ONNX").load(settings, meter).open(blob, ModelSpec("key", "CPU", batchsize=batchsize), settings)
    assert session._session.get_session_options().intra_op_num_threads == threads
    assert session.run([FakeTensor(np.ones((3, 2), np.float32))], 1)[0].tolist() == [[2, 2]] * 3
    session.close()


def test_a_model_that_the_optimiser_refuses_is_opened_without_it(monkeypatch: pytest.MonkeyPatch, opened: Callable[..., Session]) -> None:
    levels = []
    build = ort.InferenceSession

    def stumbles(blob: bytes, options: Any, **named: Any) -> Any:
        levels.append(options.graph_optimization_level)
        if options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL:
            raise RuntimeError("an optimiser's own fault")
        return build(blob, options, **named)

    monkeypatch.setattr(ort, "InferenceSession", stumbles)
    session = opened(FIXED_ROWS, settings=Settings(intra_op=1))
    assert session.run([FakeTensor(np.ones((1, 2), np.float32))], 1)[0].tolist() == [[2, 2]]
    assert levels == [ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC]


# ---- memory --------------------------------------------------------------------------------------------------------------------------


def test_memory_is_counted_by_blocks(opened: Callable[..., Session], meter: FakeMeter) -> None:
    session = opened(MUL)
    assert meter.memory >= 241
    assert meter.accesses == 3
    stored = meter.memory
    for i in range(1, 4):
        session.run([FakeTensor(np.ones((3, 2), np.float32))], 1)
        assert (meter.memory, meter.accesses) == (stored, 3 + 6 * i)
    session.close()
    assert (meter.memory, meter.accesses) == (0, 3 + 18 + 3)
    session.close()
    assert (meter.memory, meter.accesses) == (0, 24)


def test_memory_grows_with_the_weights(opened: Callable[..., Session], meter: FakeMeter) -> None:
    opened(model([op("Mul", "X W", "Y")], [value("X")], [value("Y")], [weight("W", np.ones((1000, 2)))]))
    assert 8000 < meter.memory < 8500


def test_failed_stores_and_runs_leave_no_memory_behind(opened: Callable[..., Session], run: Run, meter: FakeMeter) -> None:
    session = opened(MUL)
    stored = meter.memory
    refused(opened, model([op("Nonsense", "X", "Y")], [value("X")], [value("Y")], [weight("W", np.ones(1000))]))
    refused(run, session, FakeTensor([1], "FLOAT"))
    assert meter.memory == stored
    assert session._backend._weights == 24  # type: ignore[attr-defined]


LIMITED = Settings(memory_limit=1_000_000)
AT_STORE = "Exception during initialization: Onnxruntime memory limit exceeded, memory allocation failed."


def test_weights_beyond_the_limit_cannot_be_stored(opened: Callable[..., Session]) -> None:
    def blob(count: int) -> bytes:
        return model([op("Mul", "X W", "Y")], [value("X", (None, count))], [value("Y", None)], [weight("W", np.ones(count))])

    assert refused(opened, blob(300_000), settings=LIMITED) == AT_STORE
    first = opened(blob(150_000), settings=LIMITED)
    assert refused(opened, blob(150_000), settings=LIMITED) == AT_STORE
    first.close()
    opened(blob(150_000), settings=LIMITED)


def test_a_run_beyond_the_limit_fails_and_smaller_ones_go_on(run: Run, opened: Callable[..., Session]) -> None:
    blob = model([op("Add", "x x", "s"), op("Mul", "s s", "y")], [value("x", None)], [value("y", None)])
    session = opened(blob, settings=LIMITED)
    fits, too_large = FakeTensor(np.ones(100_000, np.float32)), FakeTensor(np.ones(400_000, np.float32))
    for _ in range(3):
        with pytest.raises(Terminated) as caught:
            session.run([too_large], 1)
        line = str(caught.value)
        assert line.startswith("Non-zero status code returned while running Add node.")
        assert line.endswith("Onnxruntime memory limit exceeded, memory allocation failed.")
        assert run(session, fits)[0][0] == 4
    assert refused(run, session, too_large)
    assert run(opened(blob), too_large)[0][0] == 4


def test_what_an_output_held_is_free_again_for_the_next_run(opened: Callable[..., Session]) -> None:
    session = opened(model([op("Add", "x x", "y")], [value("x", None)], [value("y", None)]), settings=LIMITED)
    for count in (200_000, 150_000, 220_000, 100_000, 240_000) * 3:
        assert session.run([FakeTensor(np.ones(count, np.float32))], 1)[0].shape == (count,)


def test_a_result_without_memory_is_an_error(run: Run) -> None:
    blob = model([op("Expand", "x s", "y")], [value("x", (1,)), value("s", (None,), TensorProto.INT64)], [value("y", None)])
    assert refused(run, blob, FakeTensor([1], "FLOAT"), FakeTensor([1 << 30, 1 << 30], "INT64"))
    assert refused(run, blob, FakeTensor([1], "FLOAT"), FakeTensor([1 << 45], "INT64"))


# ---- devices and settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["CPU", "cpu", "CPU:1", "cpu:77", "CPUfoo"])
def test_every_cpu_is_the_cpu(run: Run, opened: Callable[..., Session], device: str) -> None:
    assert run(opened(IDENTITY["FLOAT"], device), FakeTensor([1], "FLOAT"))[0].tolist() == [1]


@pytest.mark.parametrize("device", ["", "DISK", "GPU0", "GPU:40000"])
def test_devices_that_do_not_exist_are_refused(opened: Callable[..., Session], device: str) -> None:
    assert refused(opened, ADD, device) == "ERR unsupported device"


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["GPU", "gpu:0", "GPU:1"])
def test_a_gpu_that_is_not_there_is_refused(opened: Callable[..., Session], device: str) -> None:
    assert refused(opened, ADD, device) == "ERR GPU requested but ONNX couldn't find CUDA"


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="there is a GPU")
def test_a_gpu_whose_libraries_do_not_load_is_not_replaced_by_the_cpu(
    opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library lists CUDA, fails to load it when a session is made, and goes on with the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning):
        assert refused(opened, ADD, "GPU") == "ERR GPU requested but ONNX couldn't find CUDA"


@pytest.mark.parametrize(("settings", "intra", "inter"), [(Settings(intra_op=3, inter_op=2), 3, 2), (Settings(workers=999), 1, 1)])
def test_threads_follow_the_settings(opened: Callable[..., Session], settings: Settings, intra: int, inter: int) -> None:
    options = opened(ADD, settings=settings)._session.get_session_options()  # type: ignore[attr-defined]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (intra, inter)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert not options.enable_cpu_mem_arena


def test_the_first_run_is_warm_except_for_models_that_draw_numbers(run: Run, opened: Callable[..., Session]) -> None:
    def random_model(**attributes: Any) -> bytes:
        return model([op("RandomNormalLike", "x", "y", **attributes)], [value("x", (3,))], [value("y", (3,))])

    x = FakeTensor(np.zeros(3, np.float32))
    first = [run(random_model(seed=3.0), x)[0].tolist() for _ in range(2)]
    assert first[0] == first[1]
    unseen = ort.InferenceSession(random_model(seed=3.0), providers=["CPUExecutionProvider"]).run(None, {"x": x.memory})[0].tolist()
    assert first[0] == unseen


def test_a_model_with_enormous_fixed_inputs_is_stored_at_once(opened: Callable[..., Session], meter: FakeMeter) -> None:
    opened(model([op("Identity", "x", "y")], [value("x", (1 << 20, 1 << 20))], [value("y", None)]))


def test_a_changed_private_call_falls_back_to_the_public_one(run: Run, opened: Callable[..., Session]) -> None:
    session: Any = opened(ADD)

    def changed(names: Any, feed: Any) -> Any:
        raise AssertionError("never entered")

    session._run = changed
    x = FakeTensor([[1, 2]], "FLOAT")
    assert run(session, x, x)[0].tolist() == [[2, 4]]


def test_a_closed_session_says_so(run: Run, opened: Callable[..., Session]) -> None:
    session = opened(ADD)
    session.close()
    x = FakeTensor([[1, 2]], "FLOAT")
    assert refused(run, session, x, x) == "ERR ONNXRuntime session was not allocated"


# ---- external data -------------------------------------------------------------------------------------------------------------------

NOT_ALLOWED = "Initializer tensors with external data is not allowed."


def outside(name: str = "W", location: str = "secret.bin") -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=text)
    return tensor


def branch(tensor: Any, constant: bool) -> Any:
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor)] if constant else [op("Identity", "W", "k")]
    return helper.make_graph(nodes, "branch", [], [value("k", (2,))], [] if constant else [tensor])


def in_branches(tensor: Any, constant: bool) -> bytes:
    graph = branch(tensor, constant)
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return model([helper.make_node("If", ["true"], ["y"], then_branch=graph, else_branch=graph)], [], [value("y", (2,))], [true])


def in_function(tensor: Any) -> bytes:
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    function = helper.make_function("own", "F", ["x"], ["y"], [constant, op("Add", "x k", "y")], [helper.make_opsetid("", 17)])
    return model([helper.make_node("F", ["x"], ["y"], domain="own")], [value("x", (2,))], [value("y", (2,))], functions=[function])


def in_sparse(tensor: Any) -> bytes:
    made = proto([op("Identity", "W", "y")], [], [value("y", (2,))])
    sparse = made.graph.sparse_initializer.add(dims=[2])
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [2], [0, 1]))
    return bytes(made.SerializeToString())


def in_training(tensor: Any) -> bytes:
    made = proto([op("Identity", "x", "y")], [value("x")], [value("y")])
    made.training_info.add().algorithm.initializer.append(tensor)
    return bytes(made.SerializeToString())


def in_lists(tensor: Any) -> bytes:
    return model([helper.make_node("Own", ["x"], ["y"], domain="own", a=[tensor, tensor])], [value("x")], [value("y")])


PLACES: dict[str, Callable[[Any], bytes]] = {
    "initializer": lambda tensor: model([op("Max", "x W", "y")], [value("x", (2,))], [value("y", (2,))], [tensor]),
    "attribute": lambda tensor: model([helper.make_node("Constant", [], ["y"], value=tensor)], [], [value("y", (2,))]),
    "subgraph": lambda tensor: in_branches(tensor, constant=False),
    "subgraph attribute": lambda tensor: in_branches(tensor, constant=True),
    "function": in_function,
    "sparse initializer": in_sparse,
    "training graph": in_training,
    "list of tensors": in_lists,
}


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """A file in the working directory, where Redis keeps dump.rdb."""
    numbers = np.array([4711, 815], np.float32)
    (tmp_path / "secret.bin").write_bytes(numbers.tobytes())
    monkeypatch.chdir(tmp_path)
    return numbers


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_wherever_it_is(opened: Callable[..., Session], secret: Any, place: str) -> None:
    assert refused(opened, PLACES[place](outside())) == NOT_ALLOWED


def test_without_the_check_the_library_would_read_the_file(secret: Any) -> None:
    """If this fails, the library no longer does, and the check has become a second lock on the door."""
    blob = PLACES["initializer"](outside())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the optimiser happens to stumble over it
    session = ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(2, np.float32)})[0], secret)


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret.bin", "*/_ORT_MEM_ADDR_/*", ""])
def test_every_location_is_refused(opened: Callable[..., Session], location: str) -> None:
    assert refused(opened, PLACES["initializer"](outside(location=location))) == NOT_ALLOWED


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def by_hand(*tensor_parts: bytes) -> bytes:
    """A model whose one initializer is written field by field, its parts spread over repeated occurrences as protobuf allows."""
    node = field(1, b"W") + field(2, b"y") + field(4, b"Identity")
    kind = field(1, b"\x08\x01" + field(2, field(1, b"\x08\x02")))
    graph = field(1, node) + b"".join(field(5, part) for part in tensor_parts) + field(2, b"g") + field(12, field(1, b"y") + field(2, kind))
    return b"\x08\x08" + field(8, b"\x10\x11") + field(7, graph)


TENSOR = b"\x08\x02\x10\x01" + field(8, b"W")
ENTRIES = field(13, field(1, b"location") + field(2, b"secret.bin"))


@pytest.mark.parametrize(
    "mark",
    [
        b"\x70\x01",
        b"\x70\x81\x80\x80\x80\x80\x00",  # 1, written longer than needed
        b"\x70\x81\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # 1 after the cut to 32 bits
        b"\xf0\x80\x00\x01",  # the tag written longer than needed
        b"\x70\x00\x70\x01",
        ENTRIES,
        ENTRIES + b"\x70\x01",
        b"\xea\x80\x00" + ENTRIES[1:],
    ],
)
def test_no_spelling_of_external_data_gets_in(opened: Callable[..., Session], secret: Any, mark: bytes) -> None:
    assert refused(opened, by_hand(TENSOR + mark)) == NOT_ALLOWED


@pytest.mark.parametrize(
    "blob",
    [
        by_hand(TENSOR + b"\x7b\x70\x01\x7c"),  # a group
        by_hand(TENSOR + b"\x77"),  # wire type 7
        by_hand(TENSOR + b"\x00\x00"),  # field 0
        by_hand(TENSOR)[:-1],
        by_hand(TENSOR) + b"\x3a\xff\xff\xff\xff\x0f",
        by_hand(TENSOR) + b"\x80" * 11,
    ],
)
def test_what_the_reader_cannot_follow_is_refused(opened: Callable[..., Session], blob: bytes) -> None:
    assert refused(opened, blob) == "Failed to load model because protobuf parsing failed."


def test_graphs_in_graphs_end_somewhere(opened: Callable[..., Session]) -> None:
    graph = b""
    for _ in range(10_000):
        graph = field(1, field(5, field(6, graph)))
    assert refused(opened, b"\x08\x08" + field(7, graph)) == "Failed to load model because protobuf parsing failed."


def test_the_survey_agrees_with_the_library_that_defines_the_format() -> None:
    generator = np.random.default_rng(7)
    for _ in range(20):
        shapes = [tuple(generator.integers(0, 5, generator.integers(0, 4))) for _ in range(generator.integers(1, 6))]
        weights = [
            onnx.numpy_helper.from_array(generator.random(s).astype(generator.choice(["f4", "f8", "i1"])), f"w{i}")
            for i, s in enumerate(shapes)
        ]
        nodes = [helper.make_node("TreeEnsemble", ["x"], [f"y{i}", f"z{i}"], floats=[0.5] * 100, ints=[-1, 1 << 40] * 50) for i in range(3)]
        found = onnx_wire.survey(model(nodes, [value("x")], [value("y0")], weights))
        assert found.weights == [onnx.numpy_helper.to_array(tensor).nbytes for tensor in weights]
        assert found.values == 6
        assert found.operators == {"TreeEnsemble"}


def test_a_large_tree_ensemble_is_surveyed_quickly() -> None:
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_values=[0.5] * 200_000, nodes_nodeids=list(range(200_000))
    )
    blob = model([node], [value("x")], [value("y")])
    began = time.process_time()
    onnx_wire.survey(blob)
    assert time.process_time() - began < 0.5


# ---- blobs that are not models -------------------------------------------------------------------------------------------------------


def test_protobuf_without_a_graph_is_refused_in_words_that_clients_know(opened: Callable[..., Session]) -> None:
    graphdef = field(1, field(1, b"a") + field(2, b"Placeholder")) + field(4, b"\x08\x87\x01")
    assert refused(opened, graphdef) == "No graph was found in the protobuf."
    assert refused(opened, b"") == "No graph was found in the protobuf."


def test_other_formats_are_named(opened: Callable[..., Session]) -> None:
    for blob, words in [
        (b"PK\x03\x04broken", "it looks like a zip archive with its end missing"),
        (b"\x1c\x00\x00\x00TFL3" + b"\x00" * 50, "it looks like a TensorFlow Lite model; store it with TFLITE"),
        (b"\x1c\x00\x00\x00ORTM" + b"\x00" * 50, "it looks like a model in ORT format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it looks like a Git LFS pointer"),
    ]:
        line = refused(opened, blob)
        assert line.startswith("ERR the blob is not an ONNX model: ")
        assert words in line


def test_models_in_ort_format_are_not_read_under_another_name(opened: Callable[..., Session], tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(MUL, options, providers=["CPUExecutionProvider"])
    blob = (tmp_path / "model.ort").read_bytes()
    assert "ORT format" in refused(opened, blob)
    assert refused(opened, b"\x08\x08" + blob)


def test_junk_is_refused(opened: Callable[..., Session]) -> None:
    generator = random.Random(1)
    for length in (1, 10, 100, 5000):
        assert refused(opened, generator.randbytes(length))


def test_a_model_cut_anywhere_is_refused(opened: Callable[..., Session]) -> None:
    blob = LOOP
    for length in range(1, len(blob) - 1, 7):
        assert refused(opened, blob[:length])


def test_models_with_flipped_bits_open_and_run_or_are_refused(opened: Callable[..., Session]) -> None:
    blob = model(
        [op("MatMul", "x A", "h"), op("Relu", "h", "r"), op("Softmax", "r", "y")],
        [value("x", (None, 8))],
        [value("y", None)],
        [weight("A", np.ones((8, 8)))],
    )
    generator = random.Random(2)
    x, refusals = FakeTensor(np.ones((2, 8), np.float32)), 0
    for _ in range(1000):
        damaged = bytearray(blob)
        for _ in range(generator.randint(1, 8)):
            damaged[generator.randrange(len(blob))] ^= 1 << generator.randrange(8)
        try:
            session = opened(bytes(damaged), settings=QUICK_WARM_UP)
            session.run([x] * len(session.inputs), len(session.outputs))
        except BackendError as error:
            refusals += 1
            assert not str(error).startswith("[ONNXRuntimeError]")
    assert refusals > 100


def test_operators_that_do_not_exist_are_refused_in_the_librarys_words(opened: Callable[..., Session]) -> None:
    line = refused(opened, model([op("Nonsense", "x", "y")], [value("x")], [value("y")]))
    assert "Nonsense" in line
    assert not line.startswith("[ONNXRuntimeError]")


def test_failing_runs_print_nothing(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    refused(run, MUL, FakeTensor([1], "FLOAT"))
    blob = model([op("Expand", "x s", "y")], [value("x", (1,)), value("s", (None,), TensorProto.INT64)], [value("y", None)])
    refused(run, blob, FakeTensor([1], "FLOAT"), FakeTensor([1 << 45], "INT64"))
    assert capfd.readouterr() == ("", "")
