"""Makes every model file that the tests, the benchmarks and the examples use, and says what it wrote.

    python tests/models/make_models.py [NAME ...]     # all of them, or those whose file name contains NAME

The files are committed, so that a test run needs no converter and every machine sees the same bytes. Run this again only to change a model.

1. One network, many formats. A family (`digits`, `two_inputs`, `minimal`, `cnn`, `fraud`) is one set of weights written out by hand in each
   library's own form, so that a difference between backends is a difference of backends, never of conversion.
2. Deterministic: fixed seeds, no time stamps, no file names inside the blobs. Two runs on one set of library versions write equal bytes.
3. Old on purpose: ONNX opset 17 with IR version 8, so that ONNX Runtime from 1.14 on reads the files.
4. Small: the whole set stays below 1.5 MB.

Needs torch, tensorflow, onnx, scikit-learn and skl2onnx; takes about ten seconds, most of them importing.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples" / "models"
SEED = 20

#: file -> the function that returns its bytes; filled by @writes
FILES: dict[Path, Callable[[], bytes]] = {}
Array = np.ndarray[Any, Any]
Maker = Callable[[], bytes]


def writes(name: str, folder: Path = HERE) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        FILES[folder / name] = make
        return make

    return register


# ---- the four writers: a few lines each that hide what is long-winded in a library's own form ----------------------------------------


def onnx_blob(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Array] | None = None, domains: dict[str, int] | None = None
) -> bytes:
    """An ONNX model. Inputs and outputs are (name, numpy dtype or "string", shape with None for a free dimension)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, dtype: Any, shape: list[Any]) -> Any:
        element = TensorProto.STRING if dtype == "string" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, element, ["n" if size is None else size for size in shape])

    graph = helper.make_graph(
        nodes,
        "graph",
        [value(*one) for one in inputs],
        [value(*one) for one in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", 17)] + [helper.make_opsetid(name, version) for name, version in (domains or {}).items()]
    model = helper.make_model(graph, producer_name="redisai", opset_imports=imports, ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def op(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, **attributes)


def torch_blob(forward: str, weights: dict[str, Array] | None = None) -> bytes:
    """A TorchScript archive from the source of `forward`. Defined from text, so that no path of this machine gets into the file."""
    import torch

    module = torch.nn.Module()
    for name, array in (weights or {}).items():
        module.register_buffer(name, torch.from_numpy(array.copy()))
    script = torch.jit._recursive.create_script_module(module, lambda _: (), share_types=False)
    script.define(forward)
    blob = io.BytesIO()
    torch.jit.save(script.eval(), blob)
    return blob.getvalue()


def tf_blob(build: Callable[[Any], None]) -> bytes:
    """A frozen GraphDef; `build(tf1)` adds the nodes to the default graph."""
    tf1 = tensorflow().compat.v1
    with tf1.Graph().as_default() as graph:
        build(tf1)
    definition = graph.as_graph_def()
    definition.versions.producer = min(definition.versions.producer, 987)  # what TF 2.8 writes, so that it can read the file too
    return bytes(definition.SerializeToString(deterministic=True))


def tflite_blob(function: Callable[..., Any], signature: list[Any], **converter_options: Any) -> bytes:
    """A TFLite flatbuffer of a Python function over tensors of the given (dtype, shape)s."""
    tf = tensorflow()
    specs = [tf.TensorSpec(shape, dtype, name=name) for name, dtype, shape in signature]
    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    for name, option in converter_options.items():
        setattr(converter, name, option)
    return bytes(converter.convert())


@cache
def tensorflow() -> Any:
    import absl.logging
    import tensorflow

    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow


# ---- digits: FLOAT [n, 64] (8 x 8 pixels of 0..16) -> FLOAT [n, 10] probabilities ----------------------------------------------------


@cache
def digits_split() -> tuple[Array, Array, Array, Array]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split(x.astype(np.float32), y.astype(np.int64), test_size=450, random_state=SEED, stratify=y))  # type: ignore[return-value]


@cache
def digits_weights() -> dict[str, Array]:
    """A 64-32-10 perceptron. The division of the pixels by 16 is folded into the first layer, so that clients send them as they are."""
    from sklearn.neural_network import MLPClassifier

    train, _, labels, _ = digits_split()
    model = MLPClassifier((32,), alpha=1e-2, max_iter=400, random_state=SEED).fit(train / 16, labels)
    w1, w2 = model.coefs_
    b1, b2 = model.intercepts_
    return {name: np.ascontiguousarray(a, np.float32) for name, a in (("w1", w1 / 16), ("b1", b1), ("w2", w2), ("b2", b2))}


@writes("digits.pt", EXAMPLES)
def digits_torch() -> bytes:
    return torch_blob(
        """
def forward(self, x: Tensor) -> Tensor:
    hidden = torch.relu(torch.matmul(x, self.w1) + self.b1)
    return torch.softmax(torch.matmul(hidden, self.w2) + self.b2, dim=1)
""",
        digits_weights(),
    )


@writes("digits.onnx", EXAMPLES)
def digits_onnx() -> bytes:
    nodes = [
        op("Gemm", ["x", "w1", "b1"], ["a"]),
        op("Relu", ["a"], ["h"]),
        op("Gemm", ["h", "w2", "b2"], ["z"]),
        op("Softmax", ["z"], ["probabilities"], axis=1),
    ]
    return onnx_blob(nodes, [("x", "f4", [None, 64])], [("probabilities", "f4", [None, 10])], digits_weights())


@writes("digits.pb", EXAMPLES)
def digits_tf() -> bytes:
    def build(tf1: Any) -> None:
        x = tf1.placeholder(tf1.float32, [None, 64], name="x")
        tf1.identity(digits_function(tf1, x), name="probabilities")

    return tf_blob(build)


def digits_function(tf1: Any, x: Any) -> Any:
    w = digits_weights()
    hidden = tf1.nn.relu(tf1.matmul(x, w["w1"]) + w["b1"])
    return tf1.nn.softmax(tf1.matmul(hidden, w["w2"]) + w["b2"])


def digits_converted(**options: Any) -> bytes:
    tf = tensorflow()
    return tflite_blob(lambda x: digits_function(tf, x), [("x", tf.float32, [None, 64])], **options)


def quantised(io_dtype: str) -> bytes:
    """int8 weights and activations, calibrated on training rows; `io_dtype` is what goes in and comes out."""
    tf = tensorflow()

    def calibration() -> Iterator[list[Array]]:
        for row in digits_split()[0][:200]:
            yield [row[None]]

    return digits_converted(
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=calibration,
        target_spec=tf.lite.TargetSpec(supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8]),
        inference_input_type=getattr(tf, io_dtype),
        inference_output_type=getattr(tf, io_dtype),
    )


@writes("digits.tflite", EXAMPLES)
def digits_tflite() -> bytes:
    return digits_converted()


@writes("digits_int8.tflite", EXAMPLES)
def digits_int8() -> bytes:
    return quantised("float32")


@writes("digits_int8_io.tflite")
def digits_int8_io() -> bytes:
    return quantised("int8")


@writes("digits_uint8_io.tflite")
def digits_uint8_io() -> bytes:
    return quantised("uint8")


def npy(array: Array) -> bytes:
    blob = io.BytesIO()
    np.save(blob, array)
    return blob.getvalue()


def sample_rows() -> list[int]:
    labels = digits_split()[3]
    return [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]


@writes("digits_sample.npy", EXAMPLES)
def digits_sample() -> bytes:
    """The first held-out row of each digit."""
    return npy(digits_split()[1][sample_rows()])


@writes("digits_labels.npy", EXAMPLES)
def digits_labels() -> bytes:
    return npy(digits_split()[3][sample_rows()])


@writes("digits_test_x.npy")
def digits_test_x() -> bytes:
    """All 450 held-out rows, as bytes: pixels are whole numbers from 0 to 16."""
    return npy(digits_split()[1].astype(np.uint8))


@writes("digits_test_y.npy")
def digits_test_y() -> bytes:
    return npy(digits_split()[3].astype(np.uint8))


# ---- two_inputs: a * b over FLOAT [n, 2]; minimal: y = x * 2 over FLOAT [n, 2] -------------------------------------------------------


@writes("two_inputs.pt")
def two_inputs_torch() -> bytes:
    return torch_blob("def forward(self, a: Tensor, b: Tensor) -> Tensor:\n    return a * b\n")


@writes("two_inputs.onnx")
def two_inputs_onnx() -> bytes:
    shape = [None, 2]
    return onnx_blob([op("Mul", ["a", "b"], ["mul"])], [("a", "f4", shape), ("b", "f4", shape)], [("mul", "f4", shape)])


@writes("two_inputs.pb")
def two_inputs_tf() -> bytes:
    return tf_blob(lambda tf1: multiply(tf1, [None, 2], "mul"))


@writes("graph.pb")
def graph_tf() -> bytes:
    """The graph of the introduction: placeholders `a` and `b` of any shape, their product `c`."""
    return tf_blob(lambda tf1: multiply(tf1, None, "c"))


def multiply(tf1: Any, shape: list[Any] | None, output: str) -> None:
    tf1.multiply(tf1.placeholder(tf1.float32, shape, name="a"), tf1.placeholder(tf1.float32, shape, name="b"), name=output)


@writes("two_inputs.tflite")
def two_inputs_tflite() -> bytes:
    tf = tensorflow()
    return tflite_blob(lambda a, b: a * b, [("a", tf.float32, [None, 2]), ("b", tf.float32, [None, 2])])


@writes("minimal.pt")
def minimal_torch() -> bytes:
    return torch_blob("def forward(self, x: Tensor) -> Tensor:\n    return x + x\n")


@writes("minimal.onnx")
def minimal_onnx() -> bytes:
    return onnx_blob([op("Add", ["x", "x"], ["y"])], [("x", "f4", [None, 2])], [("y", "f4", [None, 2])])


@writes("minimal.pb")
def minimal_tf() -> bytes:
    def build(tf1: Any) -> None:
        x = tf1.placeholder(tf1.float32, [None, 2], name="x")
        tf1.add(x, x, name="y")

    return tf_blob(build)


@writes("minimal.tflite")
def minimal_tflite() -> bytes:
    tf = tensorflow()
    return tflite_blob(lambda x: x + x, [("x", tf.float32, [None, 2])])


# ---- STRING and BOOL -----------------------------------------------------------------------------------------------------------------


@writes("string_identity.onnx")
def string_identity_onnx() -> bytes:
    return onnx_blob([op("Identity", ["x"], ["y"])], [("x", "string", [None, 2])], [("y", "string", [None, 2])])


@writes("bool_identity.onnx")
def bool_identity_onnx() -> bytes:
    return onnx_blob([op("Identity", ["x"], ["y"])], [("x", "?", [None, 2])], [("y", "?", [None, 2])])


@writes("string_identity.pb")
def string_identity_tf() -> bytes:
    return tf_blob(lambda tf1: tf1.identity(tf1.placeholder(tf1.string, [None, 2], name="x"), name="y"))


@writes("bool_identity.pb")
def bool_identity_tf() -> bytes:
    return tf_blob(lambda tf1: tf1.identity(tf1.placeholder(tf1.bool, [None, 2], name="x"), name="y"))


@writes("string_identity.tflite")
def string_identity_tflite() -> bytes:
    """A reshape to the shape it has: a bare identity would convert to a graph without operators."""
    tf = tensorflow()
    return tflite_blob(lambda x: tf.reshape(x, [-1, 2]), [("x", tf.string, [None, 2])])


@writes("bool_identity.tflite")
def bool_identity_tflite() -> bytes:
    tf = tensorflow()
    return tflite_blob(lambda x: tf.logical_and(x, x), [("x", tf.bool, [None, 2])])


# ---- single models ---------------------------------------------------------------------------------------------------------------------


@writes("two_outputs.tflite")
def two_outputs_tflite() -> bytes:
    """Inputs FLOAT [n, 2] a, b -> a + b and a - b."""
    tf = tensorflow()
    return tflite_blob(lambda a, b: (a + b, a - b), [("a", tf.float32, [None, 2]), ("b", tf.float32, [None, 2])])


@writes("two_outputs.pt")
def two_outputs_torch() -> bytes:
    return torch_blob("def forward(self, a: Tensor, b: Tensor) -> Tuple[Tensor, Tensor]:\n    return a + b, a - b\n")


@writes("two_outputs.onnx")
def two_outputs_onnx() -> bytes:
    ends = [(name, "f4", [None, 2]) for name in ("a", "b", "sum", "difference")]
    return onnx_blob([op("Add", ["a", "b"], ["sum"]), op("Sub", ["a", "b"], ["difference"])], ends[:2], ends[2:])


@writes("two_outputs.pb")
def two_outputs_tf() -> bytes:
    def build(tf1: Any) -> None:
        a, b = (tf1.placeholder(tf1.float32, [None, 2], name=name) for name in ("a", "b"))
        tf1.add(a, b, name="sum")
        tf1.subtract(a, b, name="difference")

    return tf_blob(build)


@writes("mul_1.onnx")
def mul_1() -> bytes:
    """One 24-byte initializer, one input, one output: the memory figures of INFO are checked against it."""
    weights = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    return onnx_blob([op("Mul", ["X", "W"], ["Y"])], [("X", "f4", [3, 2])], [("Y", "f4", [3, 2])], {"W": weights})


@writes("infinite_loop.onnx")
def infinite_loop() -> bytes:
    """Adds 1 to its input for ever."""
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [op("Identity", ["go"], ["go_on"]), op("Add", ["value", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, [1])],
    )
    weights = {"for_ever": np.array(2**63 - 1, np.int64), "yes": np.array(True), "one": np.ones(1, np.float32)}
    loop = op("Loop", ["for_ever", "yes", "x"], ["y"], body=body)
    return onnx_blob([loop], [("x", "f4", [1])], [("y", "f4", [1])], weights)


@writes("external_data.onnx")
def external_data() -> bytes:
    """Names a file beside it for its weights; there is no such file, and a model out of a key may not read one."""
    import onnx

    model = onnx.load_from_string(mul_1())
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "24")):
        weights.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))


def iris(kind: str, **options: Any) -> bytes:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LinearRegression, LogisticRegression

    x, y = load_iris(return_X_y=True)
    model = LinearRegression() if kind == "linear" else LogisticRegression(max_iter=1000)
    model.fit(x, y.astype(np.float32) if kind == "linear" else y)
    proto = to_onnx(model, x[:1].astype(np.float32), name="iris", target_opset={"": 17, "ai.onnx.ml": 3}, options=options or None)
    proto.ir_version = 8
    proto.opset_import.sort(key=lambda entry: entry.domain)  # the converter keeps them in a set
    return bytes(proto.SerializeToString(deterministic=True))


@writes("iris_linear.onnx")
def iris_linear() -> bytes:
    return iris("linear")


@writes("iris_logistic.onnx")
def iris_logistic() -> bytes:
    return iris("logistic", zipmap=False)


@writes("iris_logistic_zipmap.onnx")
def iris_logistic_zipmap() -> bytes:
    """Its second output is a list of dictionaries, which has no tensor form."""
    return iris("logistic")


@writes("evil_read_file.pb")
def evil_read_file() -> bytes:
    def build(tf1: Any) -> None:
        tf1.identity(tf1.io.read_file(tf1.placeholder(tf1.string, [], name="path")), name="content")

    return tf_blob(build)


@writes("evil_write_file.pb")
def evil_write_file() -> bytes:
    def build(tf1: Any) -> None:
        content = tf1.placeholder(tf1.string, [], name="content")
        with tf1.control_dependencies([tf1.io.write_file("/tmp/redisai_evil_write_file", content)]):
            tf1.identity(content, name="done")

    return tf_blob(build)


@writes("scalar_output.pb")
def scalar_output() -> bytes:
    """FLOAT of any shape `x` -> its sum, a tensor without dimensions."""
    return tf_blob(lambda tf1: tf1.reduce_sum(tf1.placeholder(tf1.float32, name="x"), name="sum"))


@writes("first_row.pb")
def first_row() -> bytes:
    """FLOAT [n, 2] `x` -> its first row, FLOAT [1, 2]: what comes out never matches a batch."""
    return tf_blob(lambda tf1: tf1.identity(tf1.placeholder(tf1.float32, [None, 2], name="x")[:1], name="first"))


@writes("first_row.pt")
def first_row_torch() -> bytes:
    return torch_blob("def forward(self, x: Tensor) -> Tensor:\n    return x[:1].clone()\n")


@writes("first_row.onnx")
def first_row_onnx() -> bytes:
    bounds = {"zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)}
    slice_ = op("Slice", ["x", "zero", "one"], ["first"])
    return onnx_blob([slice_], [("x", "f4", [None, 2])], [("first", "f4", [None, 2])], bounds)


@writes("first_row.tflite")
def first_row_tflite() -> bytes:
    tf = tensorflow()
    return tflite_blob(lambda x: tf.strided_slice(x, [0, 0], [1, 2]), [("x", tf.float32, [None, 2])])


@writes("saved_model.zip")
def saved_model() -> bytes:
    """A zipped SavedModel with weights in its checkpoint: FLOAT [n, 2] `features` -> `scores`, [x0 + 2 x1 + 0.5]."""
    tf1 = tensorflow().compat.v1
    with tempfile.TemporaryDirectory() as folder, tf1.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf1.float32, [None, 2], name="x")
        weights = tf1.get_variable("weights", initializer=np.float32([[1], [2]]), use_resource=True)
        scores = tf1.add(tf1.matmul(x, weights), 0.5, name="y")
        session.run(tf1.global_variables_initializer())
        root = Path(folder) / "bundle"
        tf1.saved_model.simple_save(session, str(root), {"features": x}, {"scores": scores})
        return zipped(root)


def zipped(root: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            archive.writestr(zipfile.ZipInfo(str(path.relative_to(root))), path.read_bytes())  # without the time
    return packed.getvalue()


# ---- what the benchmarks run -----------------------------------------------------------------------------------------------------------


def random_weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """He-scaled noise. How fast a network runs does not depend on what it has learnt."""
    rng = np.random.default_rng(SEED)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))).astype(np.float32) for name, shape in shapes.items()
    }


@cache
def cnn_weights() -> dict[str, Array]:
    return random_weights(k1=(8, 1, 3, 3), c1=(8,), k2=(16, 8, 3, 3), c2=(16,), w=(10, 16 * 7 * 7), b=(10,))


@writes("cnn.pt")
def cnn_torch() -> bytes:
    """FLOAT [n, 1, 28, 28] -> FLOAT [n, 10]: two convolutions with pooling, one dense layer."""
    return torch_blob(
        """
def forward(self, x: Tensor) -> Tensor:
    x = torch.max_pool2d(torch.relu(torch.conv2d(x, self.k1, self.c1, [1, 1], [1, 1])), [2, 2])
    x = torch.max_pool2d(torch.relu(torch.conv2d(x, self.k2, self.c2, [1, 1], [1, 1])), [2, 2])
    x = torch.matmul(torch.flatten(x, 1), torch.t(self.w)) + self.b
    return torch.softmax(x, dim=1)
""",
        cnn_weights(),
    )


@writes("cnn.onnx")
def cnn_onnx() -> bytes:
    nodes = [
        op("Conv", ["x", "k1", "c1"], ["a1"], pads=[1, 1, 1, 1]),
        op("Relu", ["a1"], ["r1"]),
        op("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        op("Conv", ["p1", "k2", "c2"], ["a2"], pads=[1, 1, 1, 1]),
        op("Relu", ["a2"], ["r2"]),
        op("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        op("Flatten", ["p2"], ["f"]),
        op("Gemm", ["f", "w", "b"], ["z"], transB=1),
        op("Softmax", ["z"], ["probabilities"], axis=1),
    ]
    return onnx_blob(nodes, [("x", "f4", [None, 1, 28, 28])], [("probabilities", "f4", [None, 10])], cnn_weights())


@writes("cnn.pb")
def cnn_tf() -> bytes:
    """The same network; TensorFlow on the CPU convolves channels-last only, so it turns the picture over first."""

    def build(tf1: Any) -> None:
        x = tf1.placeholder(tf1.float32, [None, 1, 28, 28], name="x")
        tf1.identity(cnn_function(tf1, x), name="probabilities")

    return tf_blob(build)


@writes("cnn.tflite")
def cnn_tflite() -> bytes:
    tf = tensorflow()
    return tflite_blob(lambda x: cnn_function(tf.compat.v1, x), [("x", tf.float32, [None, 1, 28, 28])])


def cnn_function(tf1: Any, x: Any) -> Any:
    w = cnn_weights()
    x = tf1.transpose(x, [0, 2, 3, 1])
    for kernel, bias in (("k1", "c1"), ("k2", "c2")):
        x = tf1.nn.relu(tf1.nn.conv2d(x, w[kernel].transpose(2, 3, 1, 0), strides=1, padding="SAME") + w[bias])
        x = tf1.nn.max_pool2d(x, 2, 2, "VALID")
    x = tf1.reshape(tf1.transpose(x, [0, 3, 1, 2]), [-1, 16 * 7 * 7])
    return tf1.nn.softmax(tf1.matmul(x, w["w"].T) + w["b"])


@writes("mlp.onnx")
def mlp_onnx() -> bytes:
    """FLOAT [n, 64] -> FLOAT [n, 10] through 128 and 64 hidden units."""
    weights = random_weights(w1=(128, 64), b1=(128,), w2=(64, 128), b2=(64,), w3=(10, 64), b3=(10,))
    nodes = [
        op("Gemm", ["x", "w1", "b1"], ["a1"], transB=1),
        op("Relu", ["a1"], ["h1"]),
        op("Gemm", ["h1", "w2", "b2"], ["a2"], transB=1),
        op("Relu", ["a2"], ["h2"]),
        op("Gemm", ["h2", "w3", "b3"], ["y"], transB=1),
    ]
    return onnx_blob(nodes, [("x", "f4", [None, 64])], [("y", "f4", [None, 10])], weights)


@cache
def fraud_weights() -> dict[str, Array]:
    return random_weights(w1=(64, 286), b1=(64,), w2=(2, 64), b2=(2,))


@writes("fraud.onnx", EXAMPLES)
@writes("fraud.onnx")
@cache
def fraud_onnx() -> bytes:
    """FLOAT `transaction` [n, 30] and `reference` [n, 256] -> FLOAT [n, 2] probabilities: what the client sends, beside a key it read."""
    nodes = [
        op("Concat", ["transaction", "reference"], ["both"], axis=1),
        op("Gemm", ["both", "w1", "b1"], ["a"], transB=1),
        op("Relu", ["a"], ["h"]),
        op("Gemm", ["h", "w2", "b2"], ["z"], transB=1),
        op("Softmax", ["z"], ["probabilities"], axis=1),
    ]
    inputs = [("transaction", "f4", [None, 30]), ("reference", "f4", [None, 256])]
    return onnx_blob(nodes, inputs, [("probabilities", "f4", [None, 2])], fraud_weights())


@writes("fraud.pt", EXAMPLES)
@writes("fraud.pt")
@cache
def fraud_torch() -> bytes:
    return torch_blob(
        """
def forward(self, transaction: Tensor, reference: Tensor) -> Tensor:
    both = torch.cat([transaction, reference], dim=1)
    hidden = torch.relu(torch.matmul(both, torch.t(self.w1)) + self.b1)
    return torch.softmax(torch.matmul(hidden, torch.t(self.w2)) + self.b2, dim=1)
""",
        fraud_weights(),
    )


# ------------------------------------------------------------------------------------------------------------------------------------------


def quiet(make: Maker) -> bytes:
    """The converter talks on file descriptor 2 whatever one asks of it; what it said is shown only when it fails."""
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            return make()
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def main(names: list[str]) -> None:
    wanted = {path: make for path, make in FILES.items() if not names or any(name in path.name for name in names)}
    for path, make in wanted.items():
        blob = quiet(make)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = "same" if path.exists() and path.read_bytes() == blob else "written"
        path.write_bytes(blob)
        print(f"{len(blob):8d}  {state:8s} {path.relative_to(HERE.parents[1])}", flush=True)
    print(f"{sum(path.stat().st_size for path in wanted):8d}  total")


if __name__ == "__main__":
    main(sys.argv[1:])
