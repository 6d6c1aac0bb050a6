"""Models that return a copy of their only input `x`, of any dtype a backend has, written out without the backend's own library."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from servers import MODELS

#: wire name -> what ONNX, TensorFlow and TensorFlow Lite call it, by number
NUMBERS = {
    "FLOAT": (1, 1, 0),
    "DOUBLE": (11, 2, 10),
    "INT8": (3, 6, 9),
    "INT16": (5, 5, 7),
    "INT32": (6, 3, 2),
    "INT64": (7, 9, 4),
    "UINT8": (2, 4, 3),
    "UINT16": (4, 17, 16),
    "BOOL": (9, 10, 6),
    "STRING": (8, 7, 5),
}


@cache
def identity(backend: str, dtype: str) -> bytes:
    onnx, tf, tflite = NUMBERS[dtype]
    return {"TORCH": torch_archive, "ONNX": lambda: onnx_model(onnx), "TF": lambda: graph_def(tf), "TFLITE": lambda: flatbuffer(tflite)}[
        backend
    ]()


def torch_archive() -> bytes:
    """`x[:1]`, which takes every dtype: for inputs of one row it is what it was given."""
    return (MODELS / "first_row.pt").read_bytes()


def onnx_model(element: int) -> bytes:
    helper = pytest.importorskip("onnx").helper
    ends = [helper.make_tensor_value_info(name, element, None) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def graph_def(dtype: int) -> bytes:
    """Two nodes: a Placeholder `x` and an Identity `y` of it."""
    return node("x", "Placeholder", [], {"dtype": dtype}) + node("y", "Identity", ["x"], {"T": dtype})


def node(name: str, operator: str, inputs: list[str], types: dict[str, int]) -> bytes:
    attributes = [field(5, field(1, key.encode()) + field(2, b"\x30" + bytes([number]))) for key, number in types.items()]
    words = field(1, name.encode()) + field(2, operator.encode()) + b"".join(field(3, one.encode()) for one in inputs)
    return field(1, words + b"".join(attributes))


def field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field of less than 128 bytes."""
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def flatbuffer(element: int) -> bytes:
    """A CONCATENATION of one tensor, the operator that takes the most dtypes; for the two it does not take, no operator at all."""
    schema: Any = pytest.importorskip("ai_edge_litert.schema_py_generated")
    import flatbuffers

    def tensor(name: bytes) -> Any:
        made = schema.TensorT()
        made.name, made.type, made.shape, made.buffer = name, element, [1, 2], 0
        return made

    operator, code, graph, model = schema.OperatorT(), schema.OperatorCodeT(), schema.SubGraphT(), schema.ModelT()
    operator.inputs, operator.outputs = [0], [1]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.ConcatenationOptions, schema.ConcatenationOptionsT()
    code.version, code.builtinCode, code.deprecatedBuiltinCode = 1, 2, 2
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [tensor(b"x"), tensor(b"y")], [operator], [0], [1]
    if element in (NUMBERS["DOUBLE"][2], NUMBERS["UINT16"][2]):
        graph.operators, graph.outputs = [], [0]
    model.version, model.operatorCodes, model.buffers, model.subgraphs = 3, [code], [schema.BufferT()], [graph]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
