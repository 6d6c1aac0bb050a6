"""Running functions of a script: how arguments are bound, what comes back, and what a script can never do to its inputs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs_torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from scripting import ENTRY, FakeHost, error_of, open_script, run, strings, tensor, thread_as_before  # noqa: E402, F401

FUNCTIONS = """
def two(a, b):
    return a + b
def none():
    return torch.ones([2])
def rest(a, many: List[Tensor]):
    return a + len(many), many
def all_of(many: List[Tensor]):
    return many
def list_first(many: List[Tensor], a):
    return a
def number(a, n: int):
    return a
def new_style(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors
def optional(a: Optional[Tensor]):
    return torch.ones([1])
"""


@pytest.fixture(scope="module")
def functions() -> Any:
    return open_script(FUNCTIONS)


def call(session: Any, name: str, *values: float, n_outputs: int = 1) -> list[Any]:
    outputs = session.run(name, [tensor([value]) for value in values], [b"k"], [b"a"], n_outputs, FakeHost())
    return [output.tolist() for output in outputs]


# ---- functions that are no entry points


def test_tensor_parameters_take_inputs_in_their_order(functions: Any) -> None:
    assert call(functions, "two", 1, 2) == [[3.0]]
    assert call(functions, "none") == [[1.0, 1.0]]


def test_surplus_inputs_are_ignored(functions: Any) -> None:
    assert call(functions, "two", 1, 2, 3, 4) == [[3.0]]
    assert call(functions, "none", 1) == [[1.0, 1.0]]


def test_a_list_parameter_takes_all_that_is_left(functions: Any) -> None:
    assert call(functions, "all_of", 1, 2, 3, n_outputs=3) == [[1.0], [2.0], [3.0]]
    text = error_of(call, functions, "rest", 1, 2, 3)  # a tuple of a tensor and a list
    assert text == "Function returned non-tensor valuesrest"


@pytest.mark.parametrize(("name", "values"), [("two", (1,)), ("two", ()), ("all_of", ()), ("rest", (1,)), ("new_style", (1, 2))])
def test_too_few_inputs(functions: Any, name: str, values: tuple[float, ...]) -> None:
    assert error_of(call, functions, name, *values) == f"Wrong number of inputs provided to function: {name}"


def test_parameters_that_are_no_tensors(functions: Any) -> None:
    for name in ("number", "optional"):
        assert error_of(call, functions, name, 1, 2) == f"Unsupported input type in function definition: {name}"


def test_a_list_swallows_what_the_parameters_after_it_needed(functions: Any) -> None:
    assert error_of(call, functions, "list_first", 1, 2).startswith("expected 2 inputs, but got only 1")
    assert error_of(call, functions, "new_style", 1, 2, 3).startswith("expected 3 inputs, but got only 1")


def test_an_unknown_function(functions: Any) -> None:
    assert error_of(call, functions, "nope", 1) == "Function does not exist: nope"


def test_helpers_of_a_script_with_entry_points_can_be_called() -> None:
    session = open_script(ENTRY.format("f") + "    return half(tensors[0])\ndef half(x):\n    return x / 2\n", ["f"])
    assert call(session, "f", 4) == call(session, "half", 4) == [[2.0]]


# ---- entry points


def test_an_entry_point_gets_all_inputs_keys_and_args() -> None:
    source = "    return torch.tensor([len(tensors), len(keys), len(args)]), torch.tensor(float(args[1]))\n"
    outputs = run(source, inputs=[tensor([1]), tensor([2])], keys=[b"a", b"b", b"c"], args=[b"x", b"2.5"], n_outputs=2)
    assert [output.tolist() for output in outputs] == [[2, 3, 2], 2.5]
    assert outputs[0].dtype == np.int64


def test_keys_and_args_are_exact_bytes() -> None:
    host = FakeHost()
    odd = [bytes(range(256)), b"", b"\0", "ünï ∂".encode(), b"\xff\xfe"]
    run("    for key in keys:\n        redis.execute('SET', key, args[0])\n", keys=odd, args=odd[:1], n_outputs=0, host=host)
    assert host.calls == [[b"SET", key, odd[0]] for key in odd]


# ---- what comes back


@pytest.mark.parametrize(
    ("returned", "count"),
    [
        ("tensors[0]", 1),
        ("tensors", 2),
        ("tensors[0], tensors[1]", 2),
        ("[tensors[0]]", 1),
        ("(tensors[0],)", 1),
        ("tensors[0], tensors[1], tensors[0]", 3),
    ],
)
def test_tensors_lists_and_tuples_are_flattened_in_order(returned: str, count: int) -> None:
    outputs = run(f"    return {returned}\n", inputs=[tensor([1]), tensor([2])], n_outputs=count)
    assert [output.tolist() for output in outputs] == [[1.0], [2.0], [1.0]][:count]


@pytest.mark.parametrize(
    "returned",
    [
        "1",
        "'text'",
        "None",
        "True",
        "2.5",
        "keys",
        "tensors[0], 1",
        "tensors[0], tensors",
        "[tensors]",
        "{'a': tensors[0]}",
        "(tensors[0], None)",
    ],
)
def test_anything_else_is_refused_when_outputs_are_asked_for(returned: str) -> None:
    source = f"    return {returned}\n"
    inputs = [tensor([1]), tensor([2])]
    assert error_of(run, source, inputs=inputs, keys=[b"k"]) == "Function returned non-tensor valuesf"
    assert run(source, inputs=inputs, n_outputs=0) == []


def test_a_function_without_a_return_value() -> None:
    source = "    redis.execute('PING')\n"
    assert error_of(run, source) == "Function returned non-tensor valuesf"
    assert run(source, n_outputs=0) == []


def test_a_returned_string_that_is_not_utf8_is_like_any_other() -> None:
    assert error_of(run, "    return args[0]\n", args=[b"\xff"]) == "Function returned non-tensor valuesf"
    assert run("    return args[0]\n", args=[b"\xff"], n_outputs=0) == []


@pytest.mark.parametrize(("returned", "asked"), [("tensors[0]", 2), ("tensors", 1), ("tensors", 3), ("tensors[0], tensors[1]", 1)])
def test_the_number_of_outputs_must_match(returned: str, asked: int) -> None:
    text = error_of(run, f"    return {returned}\n", inputs=[tensor([1]), tensor([2])], n_outputs=asked)
    assert text == "Function returned unexpected number of outputs - f"


@pytest.mark.parametrize("dtype", ["FLOAT", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL"])
def test_dtypes_pass_through(dtype: str) -> None:
    value = tensor([[1, 0], [1, 1]], dtype)
    (output,) = run("    return tensors[0].t()\n", inputs=[value])
    assert output.dtype == value.memory.dtype
    assert output.flags.c_contiguous
    assert output.tolist() == value.memory.T.tolist()


def test_inputs_torch_never_took() -> None:
    assert error_of(run, "    return tensors\n", inputs=[tensor([1], "UINT16")]) == "Unsupported kUInt bits 16"
    assert error_of(run, "    return tensors\n", inputs=[strings(b"a")]) == "Unsupported code 7"


def test_nothing_runs_when_an_input_is_refused() -> None:
    host = FakeHost()
    error_of(run, "    redis.execute('PING')\n    return tensors\n", inputs=[tensor([1]), strings(b"a")], host=host)
    assert host.calls == []


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("x.to(torch.bfloat16)", "BFloat16 is not supported by dlpack"),
        ("x.to(torch.complex64)", "ComplexFloat is not supported by dlpack"),
        ("x.to(torch.complex128)", "ComplexDouble is not supported by dlpack"),
        ("torch.quantize_per_tensor(x, 1., 0, torch.qint8)", "QInt8 is not supported by dlpack"),
        ("torch.quantize_per_tensor(x, 1., 0, torch.quint8)", "QUInt8 is not supported by dlpack"),
        ("x.half()", "ERR function f returned a tensor of type float16, which has no RedisAI dtype"),
    ],
)
def test_outputs_without_a_wire_dtype(expression: str, text: str) -> None:
    assert error_of(run, f"    x = tensors[0]\n    return {expression}\n", inputs=[tensor([1])]) == text


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("x.sum()", 10.0),
        ("x[0:0]", []),
        ("x[1]", [3.0, 4.0]),
        ("x[:, 1]", [2.0, 4.0]),
        ("x[0].expand([2, 2])", [[1.0, 2.0], [1.0, 2.0]]),
        ("x.to_sparse()", [[1.0, 2.0], [3.0, 4.0]]),
        ("torch.imag(torch.conj(torch.complex(x, x)))", [[-1.0, -2.0], [-3.0, -4.0]]),
        ("torch.flip(x, [0])", [[3.0, 4.0], [1.0, 2.0]]),
        ("torch.empty([0, 3])", []),
    ],
)
def test_outputs_of_every_shape_and_layout(expression: str, result: Any) -> None:
    (output,) = run(f"    x = tensors[0]\n    return {expression}\n", inputs=[tensor([[1, 2], [3, 4]])])
    assert output.flags.c_contiguous
    assert output.tolist() == result


def test_gradients_are_off() -> None:
    source = "    x = tensors[0].clone()\n    return torch.tensor([int((x * 2).requires_grad), int(torch.is_grad_enabled())])\n"
    assert run(source, inputs=[tensor([1])])[0].tolist() == [0, 0]


# ---- errors


def test_a_run_error_is_torchscripts_traceback() -> None:
    text = error_of(run, "    return tensors[0] + tensors[1]\n", inputs=[tensor([1, 2]), tensor([1, 2, 3])])
    assert text.startswith(
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent call last):\n"
    )
    assert "return tensors[0] + tensors[1]" in text
    assert "RuntimeError: The size of tensor a (2) must match the size of tensor b (3)" in text


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("    return tensors[5]\n", "out of range"),
        ("    raise Exception('no luck')\n    return tensors\n", "no luck"),
        ("    assert len(tensors) == 3, 'three please'\n    return tensors\n", "AssertionError: three please"),
        ("    return torch.tensor(int(args[0]))\n", "RuntimeError: stoll"),
        ("    return torch.empty([1 << 50])\n", "memory"),
        ("    return torch.ones([2, 2]).view([3])\n", "shape '[3]' is invalid"),
    ],
)
def test_what_went_wrong_is_in_the_text(body: str, part: str) -> None:
    assert part in error_of(run, body, inputs=[tensor([1])], args=[b"x"])


def test_a_session_works_after_an_error() -> None:
    session = open_script("def f(a, b):\n    return a + b\n")
    for _ in range(3):
        error_of(session.run, "f", [tensor([1, 2]), tensor([1, 2, 3])], (), (), 1, FakeHost())
        assert session.run("f", [tensor([1]), tensor([2])], (), (), 1, FakeHost())[0].tolist() == [3.0]


def test_a_closed_session_says_so() -> None:
    session = open_script("def f(a):\n    return a\n")
    session.close()
    assert error_of(session.run, "f", [tensor([1])], (), (), 1, FakeHost()) == "ERR the script is closed"


# ---- inputs belong to the keyspace

#: ways to write to an argument; each must leave the stored tensor as it was
WRITES = {
    "in place": "    x.add_(1)\n",
    "operator": "    x += 1\n",
    "item": "    x[0] = 5\n",
    "mask": "    x[x > 1] = 7\n",
    "view": "    y = x.view([-1])\n    y.mul_(3)\n",
    "slice": "    x[0:1, :].zero_()\n",
    "out": "    torch.add(x, 1, out=x)\n",
    "list": "    tensors[0] += 1\n",
    "loop": "    for t in tensors:\n        t.fill_(4)\n",
    "dictionary": "    d = {'a': [x]}\n    d['a'][0].neg_()\n",
    "tuple": "    a, b = (x, 1)\n    a -= b\n",
    "any": "    y: Any = x\n    if isinstance(y, Tensor):\n        y.sigmoid_()\n",
    "function": "    change(x)\n",
    "branch": "    if len(args) == 0:\n        x.zero_()\n",
    "inplace argument": "    torch.nn.functional.relu(x - 3, True)\n    x = torch.nn.functional.hardtanh(x, 2., 3., True)\n",
    "random": "    x.random_()\n",
    "data": "    x.data.mul_(0)\n",
    "detached": "    x.detach().index_fill_(0, torch.tensor([0]), 9.)\n",
    "copy": "    x.copy_(x + 1)\n",
    "set": "    x.set_(x + 2)\n",
    "foreach": "    l = [x]\n    torch._foreach_add_(l, 1)\n    x = l[0]\n",
    "statistics": "    m = x[0]\n    x = torch.batch_norm(x, None, None, m, torch.ones([3]), True, 0.5, 1e-5, False)\n",
    "model": "    y = redisAI.model_execute('identity', [x], 1)[0]\n    y.add_(1)\n",
}


@pytest.mark.parametrize("name", WRITES)
def test_a_script_never_changes_its_inputs(name: str) -> None:
    source = f"{ENTRY.format('f')}    x = tensors[0]\n{WRITES[name]}    return x\ndef change(x):\n    x.mul_(2)\n"
    value = tensor([[1, 2, 3], [4, 5, 6]])
    host = FakeHost()
    host.models[b"identity"] = lambda array: [array]
    run(source, inputs=[value], n_outputs=0, host=host)
    assert value.memory.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_in_place_scripts_return_what_they_wrote() -> None:
    for name, result in (("in place", [[2, 3, 4]]), ("item", [[5, 5, 5]]), ("function", [[2, 4, 6]])):
        source = f"{ENTRY.format('f')}    x = tensors[0]\n{WRITES[name]}    return x\ndef change(x):\n    x.mul_(2)\n"
        assert run(source, inputs=[tensor([[1, 2, 3]])])[0].tolist() == result


@pytest.mark.parametrize(
    "body",
    [
        "    return tensors[0] * 2\n",
        "    y = torch.zeros([2, 3])\n    y[0] = tensors[0][1]\n    return y\n",
        "    return torch.nn.functional.relu(torch.nn.functional.dropout(tensors[0], 0.5, False))\n",
        "    tensors.append(tensors[0])\n    return tensors[1] + 1\n",
        "    y = tensors[0].clone()\n    y.add_(1)\n    return y\n",
    ],
)
def test_scripts_that_cannot_write_to_their_inputs_read_them_in_place(body: str) -> None:
    session = open_script(ENTRY.format("f") + body, ["f"])
    assert not session._program._functions["f"].copies
    assert open_script(ENTRY.format("f") + "    return tensors[0].add_(1)\n", ["f"])._program._functions["f"].copies


# ---- threads


def test_runs_on_several_threads_keep_to_their_own_host() -> None:
    source = "    for i in range(50):\n        redis.execute('RPUSH', keys[0], args[0])\n    return tensors[0] + int(args[0])\n"
    session = open_script(ENTRY.format("f") + source, ["f"])
    start = threading.Barrier(4)

    def one(number: int) -> None:
        host, word = FakeHost(), b"%d" % number
        start.wait()
        for _ in range(20):
            (output,) = session.run("f", [tensor([0])], [b"key"], [word], 1, host)
            assert output.tolist() == [float(number)]
        assert host.keys[b"key"] == [word] * 1000

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))


def test_a_run_leaves_the_thread_as_it_was_for_models() -> None:
    """Scripts run unoptimised; models on the same worker, also those that a script runs, keep torch's setting."""
    seen = []
    host = FakeHost()
    host.models[b"m"] = lambda array: [seen.append(torch._C._get_graph_executor_optimize()) or array]
    run("    return redisAI.model_execute('m', tensors, 1)\n", inputs=[tensor([1])], host=host)
    error_of(run, "    raise ValueError('x')\n    return tensors\n")
    assert [*seen, torch._C._get_graph_executor_optimize()] == [True, True]


def test_the_gil_is_free_while_a_script_computes() -> None:
    session = open_script(
        ENTRY.format("f") + "    n = 0\n    for i in range(3000000):\n        n += i % 7\n    return torch.tensor(n)\n", ["f"]
    )
    thread = threading.Thread(target=session.run, args=("f", (), (), (), 1, FakeHost()))
    thread.start()
    turns = 0
    while thread.is_alive():
        thread.join(0.001)
        turns += 1
    assert turns > 20
