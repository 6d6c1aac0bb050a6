"""The four backends behind real commands: what storing a model tells, which dtypes go where, every error text a client can reach, batches,
and all of them in one process: loaded in any order, by any of the three ways, and busy at the same time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from identity_models import identity
from servers import EXAMPLE_MODELS, MODELS, Server
from wire import OK, Error, Status, Wire

BACKENDS = ("TORCH", "ONNX", "TF", "TFLITE")
SUFFIX = {"TORCH": "pt", "ONNX": "onnx", "TF": "pb", "TFLITE": "tflite"}
PACKAGES = {"TORCH": "torch", "ONNX": "onnxruntime", "TF": "tensorflow", "TFLITE": "ai_edge_litert"}
#: the path that the original's backend has below BACKENDSPATH
PATHS = {name: f"redisai_{library}/redisai_{library}.so" for name, library in (PACKAGES | {"TFLITE": "tflite"}).items()}
#: network -> names of its inputs and outputs, which only TF asks for
NAMES = {
    "digits": (("x",), ("probabilities",)),
    "cnn": (("x",), ("probabilities",)),
    "two_inputs": (("a", "b"), ("mul",)),
    "minimal": (("x",), ("y",)),
    "two_outputs": (("a", "b"), ("sum", "difference")),
    "first_row": (("x",), ("first",)),
    "identity": (("x",), ("y",)),
}
DTYPES = {
    "FLOAT": "f4",
    "DOUBLE": "f8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "UINT8": "u1",
    "UINT16": "u2",
    "BOOL": "?",
}
FLOAT_TOLERANCE = 2e-6
Array = np.ndarray[Any, Any]

MARKS = {name: getattr(pytest.mark, f"needs_{name.lower()}") for name in BACKENDS}
every_backend = pytest.mark.parametrize("backend", [pytest.param(name, marks=MARKS[name]) for name in BACKENDS])


def require(*backends: str) -> None:
    """Skips a test whose libraries are not installed; asked without importing them, which takes seconds."""
    for backend in backends:
        if not find_spec(PACKAGES[backend]):
            pytest.skip(f"{PACKAGES[backend]} is not installed")


@pytest.fixture(scope="module")
def eager() -> Iterator[Server]:
    """A server that loads all four while it starts, TF first and TFLITE last; shared by the tests here, because that takes a while."""
    require(*BACKENDS)
    arguments = [word for backend in ("TF", "ONNX", "TORCH", "TFLITE") for word in (backend, PATHS[backend])]
    server = Server(echo=False, module_args=(*arguments, "THREADS_PER_QUEUE", "3"))
    yield server
    server.close()


@pytest.fixture
def wire(eager: Server) -> Iterator[Wire]:
    with Wire(eager.port, timeout=120) as wire:
        wire("FLUSHALL")
        yield wire
    assert eager.alive(), f"the server died; its log ends:\n{eager.log()[-6000:]}"


# ---- words -----------------------------------------------------------------------------------------------------------------------------


def blob(backend: str, network: str) -> bytes:
    folder = EXAMPLE_MODELS if network == "digits" else MODELS
    return (folder / f"{network}.{SUFFIX[backend]}").read_bytes()


def words(backend: str, network: str) -> list[str | int]:
    """INPUTS and OUTPUTS as AI.MODELSTORE wants them."""
    if backend != "TF":
        return []
    inputs, outputs = NAMES[network]
    return ["INPUTS", len(inputs), *inputs, "OUTPUTS", len(outputs), *outputs]


def store(wire: Wire, key: str, backend: str, network: str, *options: Any, device: str = "CPU", data: bytes | None = None) -> Any:
    data = blob(backend, network) if data is None else data
    return wire.only_reply("AI.MODELSTORE", key, backend, device, *options, *words(backend, network), "BLOB", data)


def put(wire: Wire, key: str, array: Array, dtype: str = "FLOAT") -> None:
    data = np.ascontiguousarray(array, DTYPES[dtype])
    assert wire("AI.TENSORSET", key, dtype, *data.shape, "BLOB", data.tobytes()) == OK


def get(wire: Wire, key: str) -> Array:
    _, dtype, _, shape, _, data = wire("AI.TENSORGET", key, "META", "BLOB")
    return np.frombuffer(data, DTYPES[dtype.decode()]).reshape(shape)


def execute(wire: Wire, model: str, inputs: list[str], outputs: list[str]) -> Any:
    return wire.only_reply("AI.MODELEXECUTE", model, "INPUTS", len(inputs), *inputs, "OUTPUTS", len(outputs), *outputs)


def run(wire: Wire, model: str, *inputs: Array) -> Array:
    keys = [f"in{i}" for i in range(len(inputs))]
    for key, array in zip(keys, inputs, strict=True):
        put(wire, key, array)
    assert execute(wire, model, keys, ["out"]) == OK
    return get(wire, "out")


def refusal(reply: Any) -> str:
    assert isinstance(reply, Error), reply
    return reply.text


def fields(reply: Any) -> dict[str, Any]:
    return dict(zip((name.decode() for name in reply[::2]), reply[1::2], strict=True))


def held_out() -> Array:
    return np.load(MODELS / "digits_test_x.npy").astype(np.float32)


# ---- storing ---------------------------------------------------------------------------------------------------------------------------

#: MODELGET's inputs and outputs of two_inputs: TORCH has no names for outputs, a converted TFLITE model its converter's.
SHOWN = {
    "TORCH": ([b"a", b"b"], [b""]),
    "ONNX": ([b"a", b"b"], [b"mul"]),
    "TF": ([b"a", b"b"], [b"mul"]),
    "TFLITE": ([b"a", b"b"], [b"Identity"]),
}


@every_backend
def test_a_stored_model_names_its_inputs_and_outputs(wire: Wire, backend: str) -> None:
    assert store(wire, "m", backend, "two_inputs", "TAG", "v1") == OK
    shown = fields(wire("AI.MODELGET", "m", "META"))
    assert (shown["backend"], shown["device"], shown["tag"]) == (backend.encode(), b"CPU", b"v1")
    assert (shown["inputs"], shown["outputs"]) == SHOWN[backend]


@every_backend
@pytest.mark.parametrize("network", ["digits", "cnn", "two_inputs", "minimal"])
def test_the_bytes_come_back_as_they_were_sent(wire: Wire, backend: str, network: str) -> None:
    assert store(wire, "m", backend, network) == OK
    assert wire("AI.MODELGET", "m", "BLOB") == blob(backend, network)


@every_backend
def test_the_older_store_command_takes_the_same_models(wire: Wire, backend: str) -> None:
    """MODELSET has no counts before the names."""
    names = ["INPUTS", "a", "b", "OUTPUTS", "mul"] if backend == "TF" else []
    assert wire.only_reply("AI.MODELSET", "m", backend, "CPU", *names, "BLOB", blob(backend, "two_inputs")) == OK
    assert run(wire, "m", np.float32([[2, 3]]), np.float32([[3, 5]])).tolist() == [[6, 15]]


@every_backend
@pytest.mark.parametrize("device", ["CPU:1", "cpu"])
def test_every_cpu_device_runs_models(wire: Wire, backend: str, device: str) -> None:
    assert store(wire, "m", backend, "minimal", device=device) == OK
    assert run(wire, "m", np.float32([[1, 2]])).tolist() == [[2, 4]]


NO_GPU = {
    "TORCH": "GPU requested but Torch couldn't find CUDA",
    "ONNX": "ERR GPU requested but ONNX couldn't find CUDA",
    "TF": "ERR GPU requested but TF couldn't find CUDA",
}


def has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


@every_backend
@pytest.mark.parametrize("device", ["GPU", "GPU:1", "gpu:0"])
@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(wire: Wire, backend: str, device: str) -> None:
    """TFLITE has no GPU on Linux and uses the CPU, as the original built for CPUs does."""
    reply = store(wire, "m", backend, "minimal", device=device)
    if backend == "TFLITE":
        assert reply == OK
        assert run(wire, "m", np.float32([[1, 2]])).tolist() == [[2, 4]]
    else:
        assert refusal(reply) == NO_GPU[backend]
        assert wire("EXISTS", "m") == 0


#: backend -> junk -> the reply. Bytes that look like something are called by its name.
TEXT = "it looks like a text, such as a path or a script; send the bytes of the model file after BLOB"
EMPTY = "it looks like an empty blob; send the bytes of the model file after BLOB"
JUNK = {
    ("TORCH", b"junk"): f"ERR the blob is not a TorchScript archive: {TEXT}",
    ("ONNX", b"junk"): f"ERR the blob is not an ONNX model: {TEXT}",
    ("TF", b"junk"): f"ERR the blob is not a TensorFlow GraphDef: {TEXT}",
    ("TFLITE", b"junk"): f"ERR the blob is not a TensorFlow Lite model: {TEXT}",
    ("TORCH", b"\0\xff\1" * 50): "PytorchStreamReader failed reading zip archive: not a ZIP archive",
    ("ONNX", b"\0\xff\1" * 50): "Failed to load model because protobuf parsing failed.",
    ("TF", b"\0\xff\1" * 50): "Invalid GraphDef",
    ("TFLITE", b"\0\xff\1" * 50): "Failed to load model from buffer",
}


@pytest.mark.parametrize(("backend", "junk"), [pytest.param(*row, marks=MARKS[row[0]], id=f"{row[0]}-{row[1][:4]!r}") for row in JUNK])
def test_bytes_that_are_no_model(wire: Wire, backend: str, junk: bytes) -> None:
    assert refusal(store(wire, "m", backend, "minimal", data=junk)) == JUNK[backend, junk]
    assert wire("EXISTS", "m") == 0


NOUNS = {"TORCH": "a TorchScript archive", "ONNX": "an ONNX model", "TF": "a TensorFlow GraphDef", "TFLITE": "a TensorFlow Lite model"}


@every_backend
@pytest.mark.parametrize("other", BACKENDS)
def test_a_model_of_another_backend_is_called_by_its_name(wire: Wire, backend: str, other: str) -> None:
    reply = store(wire, "m", backend, "two_inputs", data=blob(other, "two_inputs"))
    if backend == other:
        assert reply == OK
    elif (backend, other) == ("ONNX", "TF"):
        assert refusal(reply) == "No graph was found in the protobuf."  # one line for whatever is no graph, known to clients
    else:
        assert refusal(reply) == f"ERR the blob is not {NOUNS[backend]}: it looks like {NOUNS[other]}; store it with {other}"


@every_backend
def test_a_refused_model_leaves_the_one_that_was_there(wire: Wire, backend: str) -> None:
    assert store(wire, "m", backend, "minimal") == OK
    refusal(store(wire, "m", backend, "minimal", data=b"\0\xff\1" * 50))
    assert wire("AI.MODELGET", "m", "BLOB") == blob(backend, "minimal")
    assert run(wire, "m", np.float32([[1, 2]])).tolist() == [[2, 4]]


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        (["zzz", "b"], ["c"], 'ERR Input node named "zzz" not found in TF graph.'),
        (["a", "zzz"], ["yyy"], 'ERR Input node named "zzz" not found in TF graph.'),
        (["a", "c"], ["c"], 'ERR Input node named "c" not found in TF graph.'),  # no placeholder
        (["a:0", "b"], ["c"], 'ERR Input node named "a:0" not found in TF graph.'),
        (["a", "b"], ["zzz"], 'ERR Output node named "zzz" not found in TF graph'),
        (["a", "b"], ["c:0"], 'ERR Output node named "c:0" not found in TF graph'),
    ],
)
def test_names_that_are_not_in_a_graph(wire: Wire, inputs: list[str], outputs: list[str], text: str) -> None:
    names = ["INPUTS", len(inputs), *inputs, "OUTPUTS", len(outputs), *outputs]
    reply = wire.only_reply("AI.MODELSTORE", "m", "TF", "CPU", *names, "BLOB", (MODELS / "graph.pb").read_bytes())
    assert refusal(reply) == text
    assert wire("EXISTS", "m") == 0


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    ("file", "ends", "operator"), [("read", ("path", "content"), "ReadFile"), ("write", ("content", "done"), "WriteFile")]
)
def test_a_graph_that_uses_files_is_refused(wire: Wire, file: str, ends: tuple[str, str], operator: str) -> None:
    names = ["INPUTS", 1, ends[0], "OUTPUTS", 1, ends[1]]
    reply = wire.only_reply("AI.MODELSTORE", "m", "TF", "CPU", *names, "BLOB", (MODELS / f"evil_{file}_file.pb").read_bytes())
    assert refusal(reply) == f"ERR op {operator} is not allowed: it reads or writes files"
    assert wire("EXISTS", "m") == 0


@pytest.mark.needs_onnx
def test_a_model_with_weights_in_other_files_is_refused(wire: Wire) -> None:
    reply = wire.only_reply("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", (MODELS / "external_data.onnx").read_bytes())
    assert refusal(reply) == "Initializer tensors with external data is not allowed."


# ---- zipped SavedModels ------------------------------------------------------------------------------------------------------------------

SAVED = MODELS / "saved_model.zip"
FEATURES, SCORES = np.float32([[1, 2], [3, 4]]), [[5.5], [11.5]]  # x0 + 2 x1 + 0.5


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([], ([b"features"], [b"scores"])),  # those of its signature
        (["INPUTS", 1, "features", "OUTPUTS", 1, "scores"], ([b"features"], [b"scores"])),
        (["INPUTS", 1, "x", "OUTPUTS", 1, "y"], ([b"x"], [b"y"])),  # operations of its graph
    ],
)
@pytest.mark.parametrize("command", ["AI.MODELSTORE", "AI.MODELSET"])
def test_a_zipped_saved_model_runs(wire: Wire, command: str, names: list[Any], shown: Any) -> None:
    words = [word for word in names if command == "AI.MODELSTORE" or isinstance(word, str)]
    assert wire.only_reply(command, "m", "TF", "CPU", *words, "BLOB", SAVED.read_bytes()) == OK
    meta = fields(wire("AI.MODELGET", "m", "META"))
    assert (meta["inputs"], meta["outputs"]) == shown
    assert run(wire, "m", FEATURES).tolist() == SCORES
    assert wire("AI.MODELGET", "m", "BLOB") == SAVED.read_bytes()


@pytest.mark.needs_tf
@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["INPUTS", 1, "zzz", "OUTPUTS", 1, "scores"], 'ERR Input node named "zzz" not found in TF graph.'),
        (["INPUTS", 1, "features", "OUTPUTS", 1, "zzz"], 'ERR Output node named "zzz" not found in TF graph'),
        (["INPUTS", 1, "features"], "ERR OUTPUTS not specified for TF"),
        (["OUTPUTS", 1, "scores"], "ERR INPUTS not specified for TF"),
    ],
)
def test_names_that_are_not_in_a_saved_model(wire: Wire, names: list[Any], text: str) -> None:
    assert refusal(wire.only_reply("AI.MODELSTORE", "m", "TF", "CPU", *names, "BLOB", SAVED.read_bytes())) == text


@pytest.mark.needs_onnx
@pytest.mark.parametrize("backend", ["TORCH", "ONNX", "TFLITE"])
def test_a_zipped_saved_model_belongs_to_tf(wire: Wire, backend: str) -> None:
    text = refusal(wire.only_reply("AI.MODELSTORE", "m", backend, "CPU", "BLOB", SAVED.read_bytes()))
    assert text.startswith(f"ERR the blob is not {NOUNS[backend]}: it looks like a zipped TensorFlow SavedModel; store it with TF")


@pytest.mark.needs_tf
def test_a_zipped_saved_model_survives_a_dump(wire: Wire) -> None:
    assert wire("AI.MODELSTORE", "m", "TF", "CPU", "BLOB", SAVED.read_bytes()) == OK
    assert wire("RESTORE", "copy", 0, wire("DUMP", "m")) == OK
    assert run(wire, "copy", FEATURES).tolist() == SCORES


# ---- running -----------------------------------------------------------------------------------------------------------------------------


@every_backend
def test_two_inputs_are_bound_by_position(wire: Wire, backend: str) -> None:
    assert store(wire, "m", backend, "two_inputs") == OK
    for rows in (1, 3, 17):
        a = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        assert np.array_equal(run(wire, "m", a, a + 1), a * (a + 1))


def test_one_network_gives_the_same_answer_on_every_backend(wire: Wire) -> None:
    answers = {}
    for backend in BACKENDS:
        assert store(wire, f"m:{backend}", backend, "digits") == OK
        answers[backend] = run(wire, f"m:{backend}", held_out())
    for backend, answer in answers.items():
        assert answer.shape == (450, 10)
        assert np.abs(answer - answers["ONNX"]).max() < FLOAT_TOLERANCE, backend
    labels = np.load(MODELS / "digits_test_y.npy")
    assert (answers["ONNX"].argmax(axis=1) == labels).mean() > 0.97


@every_backend
def test_two_outputs_and_their_order(wire: Wire, backend: str) -> None:
    assert store(wire, "m", backend, "two_outputs") == OK
    put(wire, "a", np.float32([[2, 3]]))
    put(wire, "b", np.float32([[4, 6]]))
    assert execute(wire, "m", ["a", "b"], ["sum", "difference"]) == OK
    assert get(wire, "sum").tolist() == [[6, 9]]
    assert get(wire, "difference").tolist() == [[-2, -3]]


# ---- dtypes ------------------------------------------------------------------------------------------------------------------------------

#: (backend, dtype) -> why it is refused at the run; whatever is not here works
REFUSED_DTYPES = {
    ("TORCH", "UINT16"): "Unsupported kUInt bits 16",
    ("TORCH", "STRING"): "Unsupported code 7",
    ("TFLITE", "DOUBLE"): "Unsupported input data type",
    ("TFLITE", "UINT16"): "Unsupported input data type",
}
EXTREMES = {"FLOAT": [-1.5, 3e38], "DOUBLE": [-1e300, 0.1], "BOOL": [True, False]}


def extremes(dtype: str) -> Array:
    limits = EXTREMES.get(dtype) or [np.iinfo(DTYPES[dtype]).min, np.iinfo(DTYPES[dtype]).max]
    return np.array([limits], DTYPES[dtype])


@every_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_numeric_dtypes_go_through_unchanged(wire: Wire, backend: str, dtype: str) -> None:
    data = identity(backend, dtype)
    assert store(wire, "m", backend, "identity", data=data) == OK
    put(wire, "x", extremes(dtype), dtype)
    reply = execute(wire, "m", ["x"], ["y"])
    if (backend, dtype) in REFUSED_DTYPES:
        assert refusal(reply) == REFUSED_DTYPES[backend, dtype]
        assert wire("EXISTS", "y") == 0
    else:
        assert reply == OK
        assert wire("AI.TENSORGET", "y", "META", "BLOB") == wire("AI.TENSORGET", "x", "META", "BLOB")


TEXTS = (b"", "caf\u00e9".encode())


@every_backend
def test_strings_go_through_unchanged(wire: Wire, backend: str) -> None:
    data = blob(backend, "string_identity") if backend != "TORCH" else identity("TORCH", "STRING")
    assert store(wire, "m", backend, "identity", data=data) == OK
    assert wire("AI.TENSORSET", "x", "STRING", 1, 2, "BLOB", b"\0".join((*TEXTS, b""))) == OK
    reply = execute(wire, "m", ["x"], ["y"])
    if (backend, "STRING") in REFUSED_DTYPES:
        assert refusal(reply) == REFUSED_DTYPES[backend, "STRING"]
    else:
        assert reply == OK
        assert wire("AI.TENSORGET", "y", "VALUES") == list(TEXTS)


@pytest.mark.needs_onnx
def test_onnx_strings_are_utf8(wire: Wire) -> None:
    assert store(wire, "m", "ONNX", "identity", data=blob("ONNX", "string_identity")) == OK
    assert wire("AI.TENSORSET", "x", "STRING", 1, 2, "BLOB", b"\xff\0ok\0") == OK
    assert refusal(execute(wire, "m", ["x"], ["y"])) == "ERR ONNX strings are UTF-8, and an input or output is not"


@pytest.mark.needs_tflite
@pytest.mark.parametrize(("dtype", "zero"), [("INT8", -128), ("UINT8", 0)])
def test_quantised_models_take_and_give_integers(wire: Wire, dtype: str, zero: int) -> None:
    """Pixels of 0 to 16 lie over the whole range of the type, probabilities of 0 to 1 likewise."""
    model = (MODELS / f"digits_{dtype.lower()}_io.tflite").read_bytes()
    assert wire("AI.MODELSTORE", "m", "TFLITE", "CPU", "BLOB", model) == OK
    samples = np.load(EXAMPLE_MODELS / "digits_sample.npy")
    put(wire, "x", np.clip(np.round(samples * (255 / 16)) + zero, zero, zero + 255), dtype)
    assert execute(wire, "m", ["x"], ["y"]) == OK
    answer = get(wire, "y")
    assert answer.dtype == DTYPES[dtype]
    assert answer.argmax(axis=1).tolist() == np.load(EXAMPLE_MODELS / "digits_labels.npy").tolist()


# ---- errors of runs ----------------------------------------------------------------------------------------------------------------------

#: what two_inputs says to DOUBLE inputs; TORCH multiplies whatever it is given
WRONG_DTYPE = {
    "ONNX": "Unexpected input data type. Actual: (tensor(double)) , expected: (tensor(float))",
    "TF": "Type mismatch: actual double vs. expect float",
    "TFLITE": "Input tensor type doesn't match the type expected by the model definition",
}
#: what it says to shapes that do not fit each other: how the text begins, and what it contains
WRONG_SHAPE = {
    "TORCH": (
        "The following operation failed in the TorchScript interpreter. Traceback of TorchScript ",
        "RuntimeError: ",
    ),
    "ONNX": ("Got invalid dimensions for input: b ", "Got: 3 Expected: 2"),
    "TF": ("Incompatible shapes: [1,2] vs. [1,3]", ""),
    "TFLITE": ("Failed to allocate tensors", ""),
}


@every_backend
def test_a_wrong_dtype_is_never_converted(wire: Wire, backend: str) -> None:
    assert store(wire, "m", backend, "two_inputs") == OK
    put(wire, "d", np.array([[2, 3]]), "DOUBLE")
    reply = execute(wire, "m", ["d", "d"], ["out"])
    if backend == "TORCH":
        assert reply == OK
        assert get(wire, "out").dtype == np.float64
    else:
        assert refusal(reply).startswith(WRONG_DTYPE[backend])
        assert wire("EXISTS", "out") == 0


@every_backend
def test_shapes_that_do_not_fit(wire: Wire, backend: str) -> None:
    """A failed run leaves no output and harms no later run."""
    assert store(wire, "m", backend, "two_inputs") == OK
    put(wire, "two", np.ones((1, 2)))
    put(wire, "three", np.ones((1, 3)))
    start, part = WRONG_SHAPE[backend]
    for _ in range(2):
        text = refusal(execute(wire, "m", ["two", "three"], ["out"]))
        assert text.startswith(start) and part in text and "\n" not in text
        assert wire("EXISTS", "out") == 0
        assert run(wire, "m", np.float32([[2, 3]]), np.float32([[3, 5]])).tolist() == [[6, 15]]
        wire("DEL", "out")


@every_backend
@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        (["x"], ["out"], "Number of keys given as INPUTS here does not match model definition"),
        (["x", "x", "x"], ["out"], "Number of keys given as INPUTS here does not match model definition"),
        (["x", "x"], ["out", "more"], "Number of keys given as OUTPUTS here does not match model definition"),
    ],
)
def test_a_wrong_number_of_keys(wire: Wire, backend: str, inputs: list[str], outputs: list[str], text: str) -> None:
    assert store(wire, "m", backend, "two_inputs") == OK
    put(wire, "x", np.ones((1, 2)))
    assert refusal(execute(wire, "m", inputs, outputs)) == text
    assert fields(wire("AI.INFO", "m"))["calls"] == 0


@pytest.mark.needs_torch
def test_a_script_error_names_the_line(wire: Wire) -> None:
    assert store(wire, "m", "TORCH", "two_inputs") == OK
    put(wire, "two", np.ones((1, 2)))
    put(wire, "three", np.ones((1, 3)))
    assert "The size of tensor a (2) must match the size of tensor b (3)" in refusal(execute(wire, "m", ["two", "three"], ["out"]))


@pytest.mark.needs_onnx
def test_a_run_without_end_is_ended(start_server: Callable[..., Server]) -> None:
    server = start_server(echo=False, module_args=("MODEL_EXECUTION_TIMEOUT", "1000"))
    with Wire(server.port) as wire:
        assert wire("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", (MODELS / "infinite_loop.onnx").read_bytes()) == OK
        put(wire, "x", np.zeros(1))
        assert "Exiting due to terminate flag being set to true" in refusal(execute(wire, "m", ["x"], ["y"]))
        assert store(wire, "m", "ONNX", "minimal") == OK
        assert run(wire, "m", np.float32([[1, 2]])).tolist() == [[2, 4]]


# ---- batches -----------------------------------------------------------------------------------------------------------------------------


def together(port: int, commands: list[list[Any]]) -> list[Any]:
    """The replies to commands that are sent on a connection each, before any reply is read."""
    wires = [Wire(port, timeout=120) for _ in commands]
    try:
        for wire, command in zip(wires, commands, strict=True):
            wire.send(*command)
        return [wire.read() for wire in wires]
    finally:
        for wire in wires:
            wire.close()


@every_backend
def test_a_batch_gives_every_request_its_own_answer(wire: Wire, eager: Server, backend: str) -> None:
    """Eight requests of one to three rows, and the model runs when it has all sixteen of them."""
    rows = np.split(held_out()[:16], np.cumsum([1, 3, 2, 2, 1, 3, 1]))
    assert store(wire, "single", backend, "digits") == OK
    assert store(wire, "batched", backend, "digits", "BATCHSIZE", 16, "MINBATCHSIZE", 16) == OK
    for i, one in enumerate(rows):
        put(wire, f"x{i}", one)
    commands = [["AI.MODELEXECUTE", "batched", "INPUTS", 1, f"x{i}", "OUTPUTS", 1, f"y{i}"] for i in range(len(rows))]
    assert together(eager.port, commands) == [OK] * 8
    for i, one in enumerate(rows):
        answer = get(wire, f"y{i}")
        assert answer.shape == (len(one), 10)
        assert np.abs(answer - run(wire, "single", one)).max() < FLOAT_TOLERANCE
    stats = fields(wire("AI.INFO", "batched", "STATS"))
    assert (stats["batches"], stats["batched_requests"]) == (1, 8)


MISMATCH = {
    "TF": "ERR Tensorflow batching error: model did not generate the expected batch size",
    "TFLITE": "ERR Model did not generate the expected batch size",
    "TORCH": "ERR Model did not generate the expected batch size",
    "ONNX": "ERR Model did not generate the expected batch size",
}


@every_backend
def test_a_model_that_swallows_rows_fails_in_a_batch(wire: Wire, eager: Server, backend: str) -> None:
    """Its output has one row whatever it is given, and nobody knows whose. Alone it may do as it likes."""
    assert store(wire, "m", backend, "first_row", "BATCHSIZE", 3, "MINBATCHSIZE", 3) == OK
    assert store(wire, "alone", backend, "first_row", "BATCHSIZE", 3) == OK
    put(wire, "x0", np.float32([[1, 2], [3, 4]]))
    put(wire, "x1", np.float32([[5, 6]]))
    commands = [["AI.MODELEXECUTE", "m", "INPUTS", 1, f"x{i}", "OUTPUTS", 1, f"y{i}"] for i in range(2)]
    assert together(eager.port, commands) == [Error(MISMATCH[backend])] * 2
    assert wire("EXISTS", "y0", "y1") == 0
    assert execute(wire, "alone", ["x0"], ["y"]) == OK
    assert get(wire, "y").tolist() == [[1, 2]]


# ---- one process, four libraries ---------------------------------------------------------------------------------------------------------


def loaded(port: int) -> list[str]:
    """Backends whose library is loaded, as INFO tells."""
    with Wire(port) as wire:
        info = wire("INFO", "ai_backends_info").decode()
    shown = {"TF": "TensorFlow_version", "TFLITE": "TensorFlowLite_version", "TORCH": "Torch_version", "ONNX": "onnxruntime_version"}
    return sorted(name for name, field in shown.items() if f"ai_{field}:" in info)


def check_answers(port: int, order: list[str]) -> None:
    """Stores and runs a model on each backend, in the order given."""
    with Wire(port, timeout=120) as wire:
        for backend in order:
            assert store(wire, backend, backend, "two_inputs") == OK
        for backend in order:
            assert run(wire, backend, np.float32([[2, 3]]), np.float32([[3, 5]])).tolist() == [[6, 15]], backend


def test_load_arguments_load_all_four_before_the_first_command(eager: Server) -> None:
    assert loaded(eager.port) == sorted(BACKENDS)
    for backend in BACKENDS:
        assert f"{backend} backend loaded from " in eager.log()
    check_answers(eager.port, ["TFLITE", "TORCH", "ONNX", "TF"])


def test_a_loaded_backend_cannot_be_loaded_again(eager: Server) -> None:
    with Wire(eager.port) as wire:
        for backend in BACKENDS:
            assert refusal(wire("AI.CONFIG", "LOADBACKEND", backend, PATHS[backend])) == "ERR error loading backend"


def test_backends_loaded_one_by_one_in_another_order(start_server: Callable[..., Server]) -> None:
    """Three by LOADBACKEND, and TF, which takes seconds to import, by the first model that needs it. Only its client waits: others are
    answered, and other models run."""
    require(*BACKENDS)
    server = start_server(echo=False, module_args=("THREADS_PER_QUEUE", "2"))
    assert loaded(server.port) == []
    with Wire(server.port, timeout=120) as waiting, Wire(server.port, timeout=120) as other:
        for backend in ("TORCH", "TFLITE", "ONNX"):
            assert other("AI.CONFIG", "LOADBACKEND", backend, PATHS[backend]) == OK
            assert backend in loaded(server.port)
        assert store(other, "onnx", "ONNX", "minimal") == OK
        waiting.send("AI.MODELSTORE", "tf", "TF", "CPU", *words("TF", "minimal"), "BLOB", blob("TF", "minimal"))
        answered = 0
        while "TF" not in loaded(server.port):
            assert run(other, "onnx", np.float32([[1, 2]])).tolist() == [[2, 4]]
            answered += 1
        assert waiting.read() == OK
        assert answered > 10
    check_answers(server.port, ["TFLITE", "TF", "TORCH", "ONNX"])


CLIENTS, REQUESTS = 8, 60


def test_all_four_at_once_give_right_answers(eager: Server) -> None:
    """Eight clients run a mixture of models while a ninth overwrites one of them and a tenth saves."""
    expected: dict[str, Array] = {}
    with Wire(eager.port, timeout=120) as wire:
        wire("FLUSHALL")
        for backend in BACKENDS:
            assert store(wire, f"digits:{backend}", backend, "digits", "BATCHSIZE", 16) == OK
            assert store(wire, f"mul:{backend}", backend, "two_inputs") == OK
            expected[backend] = run(wire, f"digits:{backend}", held_out())

    def client(number: int) -> int:
        choose = random.Random(number)
        with Wire(eager.port, timeout=120) as wire:
            for _ in range(REQUESTS):
                backend = choose.choice(BACKENDS)
                if choose.random() < 0.5:
                    start = choose.randrange(440)
                    rows = slice(start, start + choose.randint(1, 5))
                    check(digits(wire, number, backend, held_out_rows[rows]), expected[backend][rows])
                else:
                    a = np.float32([[choose.random(), choose.random()]])
                    check(product(wire, number, backend, a), a * a)
        return REQUESTS

    def digits(wire: Wire, number: int, backend: str, rows: Array) -> Array:
        put(wire, f"{number}:x", rows)
        assert execute(wire, f"digits:{backend}", [f"{number}:x"], [f"{number}:y"]) == OK
        return get(wire, f"{number}:y")

    def product(wire: Wire, number: int, backend: str, a: Array) -> Array:
        put(wire, f"{number}:a", a)
        assert execute(wire, f"mul:{backend}", [f"{number}:a", f"{number}:a"], [f"{number}:c"]) == OK
        return get(wire, f"{number}:c")

    def check(got: Array, wanted: Array) -> None:
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() < FLOAT_TOLERANCE

    def disturb() -> int:
        with Wire(eager.port, timeout=120) as wire:
            for i in range(12):
                assert store(wire, f"mul:{BACKENDS[i % 4]}", BACKENDS[i % 4], "two_inputs") == OK
                reply = wire("BGSAVE")
                assert isinstance(reply, Status) or "in progress" in reply.text
        return 0

    held_out_rows = held_out()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        ends = [*(pool.submit(client, number) for number in range(CLIENTS)), pool.submit(disturb)]
        assert sum(end.result() for end in ends) == CLIENTS * REQUESTS
    assert eager.alive()
    with Wire(eager.port) as wire:
        assert all(fields(wire("AI.INFO", f"digits:{backend}"))["errors"] == 0 for backend in BACKENDS)
