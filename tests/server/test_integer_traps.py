"""Divisions that x86 refuses (the smallest integer by -1, and by zero where a library does not look) end no server."""

from __future__ import annotations

import io
import platform

import pytest
import redis
from servers import Server

pytestmark = [pytest.mark.needs_torch, pytest.mark.needs_onnx]
OK = b"OK"
SMALLEST = {"INT32": -(2**31), "INT64": -(2**63)}
BITS = {"INT32": 4, "INT64": 8}
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors do not trap")


def put(c: redis.Redis, key: str, dtype: str, *values: int) -> None:
    blob = b"".join(v.to_bytes(BITS[dtype], "little", signed=True) for v in values)
    c.execute_command("AI.TENSORSET", key, dtype, len(values), "BLOB", blob)


def get(c: redis.Redis, key: str, dtype: str) -> list[int]:
    blob = c.execute_command("AI.TENSORGET", key, "BLOB")
    return [int.from_bytes(blob[i : i + BITS[dtype]], "little", signed=True) for i in range(0, len(blob), BITS[dtype])]


def onnx_model(op: str, dtype: str) -> bytes:
    onnx = pytest.importorskip("onnx")
    kind = getattr(onnx.TensorProto, dtype)
    values = [onnx.helper.make_tensor_value_info(name, kind, ["n"]) for name in "abc"]
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, ["a", "b"], ["c"])], "g", values[:2], values[2:])
    model: bytes = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return model


def torch_model() -> bytes:
    torch = pytest.importorskip("torch")

    class Divide(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, a, b):  # type: ignore[no-untyped-def]
            return torch.div(a, b, rounding_mode="trunc")

    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Divide()), file)
    return file.getvalue()


@on_x86
@pytest.mark.parametrize("dtype", SMALLEST)
@pytest.mark.parametrize("model", ["onnx Div", "onnx Mod", "torch div"])
def test_the_smallest_integer_divided_by_minus_one(real_server: Server, real: redis.Redis, model: str, dtype: str) -> None:
    library, op = model.split()
    blob = onnx_model(op, dtype) if library == "onnx" else torch_model()
    real.execute_command("AI.MODELSTORE", "m", library.upper(), "CPU", "BLOB", blob)
    put(real, "a", dtype, SMALLEST[dtype], 7, 9)
    put(real, "b", dtype, -1, 2, -3)
    assert real.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 2, "a", "b", "OUTPUTS", 1, "c") == OK
    first, *others = get(real, "c", dtype)
    assert first == (0 if op == "Mod" else SMALLEST[dtype])
    assert others in ([3, -3], [1, 0])
    assert real_server.alive()


@on_x86
@pytest.mark.parametrize("expression", ["1 % 0", "(-9223372036854775807 - 1) // -1", "(-9223372036854775807 - 1) % -1"])
def test_a_constant_that_the_compiler_works_out(real_server: Server, real: redis.Redis, expression: str) -> None:
    source = f"def f(a):\n    return a + {expression}\n"
    try:
        real.execute_command("AI.SCRIPTSET", "s", "CPU", "SOURCE", source)
        put(real, "a", "INT64", 1)
        real.execute_command("AI.SCRIPTRUN", "s", "f", "INPUTS", "a", "OUTPUTS", "c")
    except redis.ResponseError:
        pass  # refused when it is stored or run: as good
    assert real.ping()
    assert real_server.alive()
