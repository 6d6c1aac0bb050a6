"""Compiling scripts: the texts of every refusal, and what the free names of a script mean."""

from __future__ import annotations

import math
import os
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs_torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from scripting import ENTRY, FakeHost, error_of, open_script, run, tensor, thread_as_before  # noqa: E402, F401

ADD = "def f(a, b):\n    return a + b\n"
GOOD = ENTRY.format("good") + "    return tensors[0]\n"
SIGNATURE = "Expected signature similar to: def {0}(tensors: List[Tensor], keys: List[str], args: List[str])"


@pytest.mark.parametrize("source", ["", "\n\n", "# nothing\n", b"", "   \n\t\n"])
def test_an_empty_script_is_legal(source: bytes | str) -> None:
    session = open_script(source)
    assert error_of(session.run, "f", (), (), (), 0, FakeHost()) == "Function does not exist: f"


@pytest.mark.parametrize(
    "source",
    [ADD, ADD.rstrip(), ADD.encode(), "\n\n" + ADD + "\n\n", ADD.replace("\n", "\r\n"), "# é ∂\n" + ADD, ADD.replace("    ", "\t")],
    ids=["plain", "no newline", "bytes", "blank lines", "windows", "utf-8 comment", "tab"],
)
def test_sources_as_clients_send_them(source: bytes | str) -> None:
    session = open_script(source)
    assert session.run("f", [tensor([1, 2]), tensor([3, 4])], (), (), 1, FakeHost())[0].tolist() == [4, 6]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("def f x):\n    return 1\n", "expected ( but found"),
        ("def f(x):\n    return y\n", "undefined value y"),
        ("def f(x):\n    return torch.no_such_operator(x)\n", "no_such_operator"),
        ("def f(x):\n    return x.no_such_method()\n", "no_such_method"),
        ("def f(x):\n    return f(x)\n", "called recursively"),
        ("def f(x):\n    return g(x)\ndef g(x):\n    return f(x)\n", "called recursively"),
        ("def f(x):\n    return x\ndef f(x):\n    return x\n", "f"),
        ("import os\n", "expected def"),
        ("x = 1\n", "expected def"),
        ("def f(x: Nonsense):\n    return x\n", "Unknown type name 'Nonsense'"),
        ("def f(x):\n    redis.execute(5)\n    return x\n", "redis"),
        ("def f(x):\n    return redis.shutdown()\n", "shutdown"),
        ("not python at all", "expected def"),
    ],
)
def test_the_compilers_text_is_the_error(source: str, part: str) -> None:
    text = error_of(open_script, source)
    assert part in text
    assert not text.startswith(("\n", "ERR"))


@pytest.mark.parametrize("device", ["CPU", "cpu", "CPU:1", "CPUfoo"])
def test_cpu_devices(device: str) -> None:
    open_script(ADD, device=device)


@pytest.mark.parametrize("device", ["TPU", "", "GPUX", "XCPU"])
def test_an_unsupported_device_is_refused_before_compiling(device: str) -> None:
    assert error_of(open_script, "def f(", device=device) == "ERR unsupported device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_noticed_between_compiling_and_entry_points() -> None:
    assert "expected" in error_of(open_script, "def f(", ["nope"], "GPU")
    for device in ("GPU", "gpu:0", "GPU:3"):
        assert error_of(open_script, ADD, ["nope"], device) == "GPU requested but Torch couldn't find CUDA"


# ---- entry points


def test_an_entry_point_must_exist() -> None:
    assert error_of(open_script, GOOD, ["good", "bar"]) == "Function bar does not exist in the given script."


@pytest.mark.parametrize(("parameters", "count"), [("", 0), ("tensors: List[Tensor]", 1), ("a, b, c, d", 4)])
def test_an_entry_point_takes_three_parameters(parameters: str, count: int) -> None:
    source = f"def f({parameters}):\n    return torch.ones([1])\n"
    assert error_of(open_script, source, ["f"]) == f"Wrong number of inputs in function f. Expected 3 but was {count}"


@pytest.mark.parametrize(
    "parameters",
    [
        "a, b, c",
        "a: Tensor, b: List[str], c: List[str]",
        "a: List[Tensor], b: List[str], c: List[int]",
        "a: List[Tensor], b: str, c: List[str]",
        "a: List[str], b: List[str], c: List[Tensor]",
        "a: Optional[List[Tensor]], b: List[str], c: List[str]",
    ],
)
def test_an_entry_point_takes_tensors_keys_and_args(parameters: str) -> None:
    source = f"def f({parameters}):\n    return torch.ones([1])\n"
    assert error_of(open_script, source, ["f"]) == f"Wrong inputs type in function f. {SIGNATURE.format('f')}"


def test_entry_points_are_checked_in_their_order() -> None:
    source = GOOD + "def one(x):\n    return x\ndef three(a, b, c):\n    return a\n"
    assert "Function nope does not" in error_of(open_script, source, ["good", "nope", "one"])
    assert "function one. Expected 3 but was 1" in error_of(open_script, source, ["one", "nope"])
    assert "type in function three" in error_of(open_script, source, ["good", "three", "one"])


def test_names_defaults_and_return_types_of_entry_points_are_free() -> None:
    source = "def h(x: List[Tensor], k: List[str], z: List[str] = ['a']) -> int:\n    return 3\n"
    session = open_script(source, ["h"])
    assert list(session.run("h", (), (), (), 0, FakeHost())) == []
    assert error_of(session.run, "h", (), (), (), 1, FakeHost()) == "Function returned non-tensor valuesh"


def test_type_comments_name_the_types() -> None:
    source = "def f(tensors, keys, args):\n    # type: (List[Tensor], List[str], List[str]) -> Tensor\n    return tensors[0]\n"
    assert run(source, inputs=[tensor([1])])[0].tolist() == [1]


# ---- names


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("torch.cat([x, x])", [4.0, 9.0, 4.0, 9.0]),
        ("TORCH.sqrt(x)", [2.0, 3.0]),
        ("Torch.zeros_like(x)", [0.0, 0.0]),
        ("x.to(torch.int64).to(torch.float32)", [4.0, 9.0]),
        ("torch.ones(2, dtype=torch.float) * x", [4.0, 9.0]),
        ("torch.nn.functional.relu(-x)", [0.0, 0.0]),
        ("torch.nn.functional.hardtanh(x, 0., 5.)", [4.0, 5.0]),
        ("torch.nn.functional.normalize(x, dim=0) * 0. + x", [4.0, 9.0]),
        ("torch.linalg.norm(x) * 0. + x", [4.0, 9.0]),
        ("torch.fft.ifft(torch.fft.fft(x)).real.round()", [4.0, 9.0]),
        ("torch.special.expit(x * 0.)", [0.5, 0.5]),
        ("x * math.sqrt(4)", [8.0, 18.0]),
        ("x * math.pi", [4 * np.float32(math.pi), 9 * np.float32(math.pi)]),
        ("torch.where(x > 5, x, torch.tensor(math.inf))", [math.inf, 9.0]),
        ("torch.full([2], torch.pi) * 0. + x", [4.0, 9.0]),
        ("torch.tensor(int('3')) + x", [7.0, 12.0]),
        ("torch.einsum('i,i->i', x, x)", [16.0, 81.0]),
        ("x.to(torch.device('cpu'))", [4.0, 9.0]),
        ("torch.unique(torch.cat([x, x]))", [4.0, 9.0]),
        ("torch.stack(torch.jit.annotate(List[Tensor], [x[0], x[1]]))", [4.0, 9.0]),
        ("x.contiguous(memory_format=torch.contiguous_format)", [4.0, 9.0]),
    ],
)
def test_names_a_script_may_use(expression: str, result: list[float]) -> None:
    assert run(f"    x = tensors[0]\n    return {expression}\n", inputs=[tensor([4, 9])])[0].tolist() == pytest.approx(result)


def test_built_in_exceptions_can_be_raised() -> None:
    text = error_of(run, "    raise ValueError('no such customer: ' + args[0])\n    return tensors\n", args=[b"7"])
    assert "ValueError: no such customer: 7" in text


@pytest.mark.parametrize(
    "expression",
    [
        "torch.os.getpid()",
        "torch.nn.functional.torch.ones(1)",
        "torch.nn.functional.np.ones(1)",
        "torch.nn.functional.importlib",
        "torch.nn.Linear(1, 1)",
        "torch.ops.aten.relu(tensors[0])",
        "torch.ops.redis._call(['PING'])",
        "torch.load('x')",
        "torch.jit.load('x')",
        "torch.jit.fork(f)",
        "torch.set_num_threads(1)",
        "torch.set_default_dtype(torch.float64)",
        "torch.use_deterministic_algorithms(True)",
        "torch.cuda.synchronize()",
        "torch.hub",
        "torch.__file__",
        "torch.name",
        "math.os.getpid()",
        "math.sqrt.__self__",
        "redis._call(['PING'])",
        "redis.execute.__globals__",
        "redisAI._run('m', tensors, 1)",
        "ValueError.__subclasses__()",
        "open('/etc/passwd')",
        "eval('1')",
        "__import__('os')",
        "globals()",
        "os.getpid()",
    ],
)
def test_names_a_script_has_no_way_to(expression: str) -> None:
    assert error_of(open_script, f"{ENTRY.format('f')}    {expression}\n    return tensors\n")


def test_namespaces_hold_nothing_that_leads_on() -> None:
    from redisai_py.scripts import namespaces

    allowed = (*namespaces._CONSTANTS, *namespaces._FUNCTIONS, type(None), str)
    seen = []

    def look(module: types.ModuleType) -> None:
        seen.append(module.__name__)
        for name, value in vars(module).items():
            if isinstance(value, types.ModuleType):
                assert value.__name__ == name, f"{module.__name__}.{name}"
                look(value)
            else:
                assert isinstance(value, allowed), f"{module.__name__}.{name}"

    for module in [*namespaces._NAMESPACES.values(), namespaces._NAMES["math"]]:
        look(module)
    assert sorted(seen) == sorted(["torch", "nn", "functional", "linalg", "fft", "special", "jit", "redis", "redisAI", "math"])


def test_every_function_of_nn_functional_compiles_or_says_why() -> None:
    """A namespace of torch's own functions: what cannot be compiled fails with the compiler's text, never otherwise."""
    from redisai_py.scripts import namespaces

    compiled = 0
    for name in vars(namespaces._NAMESPACES["torch"].nn.functional):
        if name.startswith("__"):
            continue
        try:
            open_script(f"def f(x):\n    return torch.nn.functional.{name}(x)\n")
        except Exception as error:
            assert type(error).__name__ == "BackendError", name
            assert "scripts may not use" not in str(error), f"{name}: {error}"
        else:
            compiled += 1
    assert compiled > 30


# ---- many scripts


def test_scripts_compile_on_several_threads_at_once() -> None:
    def one(number: int) -> float:
        source = f"def f(x):\n    return torch.nn.functional.relu(x) + {number}\n"
        return float(run(source, inputs=[tensor([1])], entry=False)[0][0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(40))) == [number + 1 for number in range(40)]


def test_a_thousand_compiles_leave_nothing_behind() -> None:
    source = "def f(x):\n    redis.execute('SET', 'k', 'v')\n    return torch.nn.functional.relu(x) + 1\n"

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cycle(times: int) -> None:
        for _ in range(times):
            session = open_script(source)
            session.run("f", [tensor([1])], (), (), 1, FakeHost())
            session.close()

    cycle(200)
    before = resident()
    cycle(1000)
    assert resident() - before < 8 << 20  # one kept program would be about 40 kB
