"""Scripts that mean harm: none may end the process, touch a file, or change what other scripts and models see."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs_torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scripting import ENTRY, FakeHost, error_of, open_script, run, tensor, thread_as_before  # noqa: E402, F401

from redisai_py.errors import BackendError  # noqa: E402
from redisai_py.scripts import source as limits  # noqa: E402

# ---- files

SECRET = b"0123456789abcdef"

#: ways to a file; {read} holds a secret, {write} does not exist
FILE_ROUTES = {
    "save": "    torch.save(x, '{write}')\n",
    "save list": "    torch.save([x, x], '{write}')\n",
    "save text": "    torch.save(args[0], args[0])\n",
    "save in a branch": "    if len(args) > 7:\n        torch.save(x, '{write}')\n",
    "save in a loop": "    for i in range(len(args)):\n        torch.save(x, '{write}')\n",
    "save after return": "    if len(args) == 0:\n        return tensors\n    torch.save(x, '{write}')\n",
    "save in another function": "    other(x)\n",
    "save in a comprehension": "    y = [torch.save(t, '{write}') for t in tensors]\n",
    "other case": "    TORCH.save(x, '{write}')\n",
    "read": "    x = torch.from_file('{read}', False, 4, dtype=torch.int32)\n",
    "shared": "    x = torch.from_file('{write}', True, 4)\n",
    "keywords": "    x = torch.from_file(filename='{read}', size=4)\n",
    "out": "    x = torch.from_file('{read}', False, 4, out=x)\n",
    "method": "    y = x.save('{write}')\n",
    "method of a string": "    x = '{read}'.from_file(False, 4)\n",
    "getattr": "    getattr(torch, 'save')(x, '{write}')\n",
    "functional": "    torch.nn.functional.torch.save(x, '{write}')\n",
    "load": "    x = torch.load('{read}')\n",
    "open": "    open('{write}', 'w')\n",
}


@pytest.mark.parametrize("route", FILE_ROUTES)
def test_no_way_leads_to_a_file(route: str, tmp_path: Path) -> None:
    read, write = tmp_path / "secret", tmp_path / "canary"
    read.write_bytes(SECRET)
    body = FILE_ROUTES[route].format(read=read, write=write)
    source = f"{ENTRY.format('f')}    x = tensors[0]\n{body}    return [x]\ndef other(x):\n    torch.save(x, '{write}')\n"
    text = error_of(open_script, source if "other" in body else source.partition("def other")[0], ["f"])
    assert "aten::save" in text or "aten::from_file" in text or "has no attribute" in text or "undefined value" in text
    assert not write.exists()
    assert read.read_bytes() == SECRET


def test_a_dead_call_of_a_file_operator_is_refused_too(tmp_path: Path) -> None:
    source = f"def unused(x):\n    return torch.from_file('{tmp_path}')\ndef f(x):\n    return x\n"
    assert error_of(open_script, source) == "ERR the script uses operators that scripts may not use: aten::from_file"


def test_what_models_may_be_allowed_scripts_are_not(tmp_path: Path) -> None:
    assert "aten::save" in error_of(open_script, f"def f(x):\n    torch.save(x, '{tmp_path}/x')\n    return x\n", allow_file_ops=True)


# ---- what others see


@pytest.mark.parametrize(
    ("call", "operator"),
    [
        ("torch.manual_seed(1)", "aten::manual_seed"),
        ("torch.set_grad_enabled(True)", "aten::set_grad_enabled"),
        ("x = x + torch.__round_to_zero_floordiv(x.size(0), x.size(0))", "aten::__round_to_zero_floordiv"),
    ],
)
def test_state_that_others_share_cannot_be_changed(call: str, operator: str) -> None:
    text = error_of(open_script, f"def f(x):\n    {call}\n    return x\n")
    assert text == f"ERR the script uses operators that scripts may not use: {operator}"


def test_the_order_of_scripts_does_not_matter() -> None:
    """Everything a script could try to leave behind in the process, then one that would notice."""

    def process() -> tuple[object, ...]:
        return torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()

    probe = "    return torch.tensor([0.1]), torch.ones([1]).sum(), torch.tensor(int(torch.is_grad_enabled()))\n"

    def look() -> list[object]:
        return [(output.dtype, output.tolist()) for output in run(probe, n_outputs=3)]

    first, before = look(), process()
    for body in (
        "    x = tensors[0]\n    x.requires_grad_(False)\n    print('x' * 1000)\n",
        "    torch.rand([100])\n    redis.execute('PING')\n",
        "    raise ValueError('half way')\n",
    ):
        with contextlib.suppress(BackendError):
            run(body + "    return tensors\n", inputs=[tensor([1])], n_outputs=0)
    assert (look(), process()) == (first, before)


def test_print_goes_to_pythons_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    run("    print('seen', len(args))\n", n_outputs=0)
    assert capsys.readouterr().out == "seen 0\n"


# ---- sources that break the parser


def _functions(count: int, body: str) -> str:
    return "".join(f"def f{i}(x: int) -> int:\n{body.format(next=f'f{i + 1}(x)' if i + 1 < count else 'x')}" for i in range(count))


#: sources that grow with n; each overflowed the parser's, the compiler's or the interpreter's stack at some size, or never ended
SHAPES: dict[str, Callable[[int], str]] = {
    "parentheses": lambda n: f"def f(x):\n    return {'(' * n}x{')' * n}\n",
    "lists": lambda n: f"def f(x):\n    y = {'[' * n}1{']' * n}\n    return x\n",
    "open only": lambda n: f"def f(x):\n    return {'(' * n}",
    "dictionaries": lambda n: f"def f(x):\n    y = {'{1:' * n}1{'}' * n}\n    return x\n",
    "comprehensions": lambda n: f"def f(x: List[int]):\n    return {'[' * n}1{' for i in x]' * n}\n",
    "types": lambda n: f"def f(x: {'List[' * n}int{']' * n}):\n    return 1\n",
    "type comment": lambda n: f"def f(x):\n    # type: ({'List[' * n}int{']' * n}) -> int\n    return 1\n",
    "minus": lambda n: f"def f(x):\n    return {'-' * n}x\n",
    "not": lambda n: f"def f(x: bool):\n    return {'not ' * n}x\n",
    "power": lambda n: f"def f(x: float):\n    return {'x ** ' * n}x\n",
    "conditional": lambda n: f"def f(x: int):\n    return {'x if x > 1 else ' * n}x\n",
    "sum": lambda n: f"def f(x):\n    return {'x + ' * n}x\n",
    "and": lambda n: f"def f(x: bool):\n    return {'x and ' * n}x\n",
    "comparison": lambda n: f"def f(x: int):\n    return {'x < ' * n}x\n",
    "methods": lambda n: f"def f(x):\n    return x{'.relu()' * n}\n",
    "indices": lambda n: f"def f(x):\n    return x{'[0]' * n}\n",
    "in brackets over lines": lambda n: f"def f(x):\n    return (x\n{'+ x' * n})\n",
    "after a continuation": lambda n: f"def f(x):\n    return x \\\n{'+ x' * n}\n",
    "elif": lambda n: (
        "def f(x: int):\n    y = 0\n    if x == 0:\n        y = 1\n" + "    elif x == 2:\n        y = 2\n" * n + "    return y\n"
    ),
    "early returns": lambda n: "def f(x: int):\n" + "    if x == 1:\n        return 2\n" * n + "    return 3\n",
    "blocks": lambda n: (
        "def f(x: int):\n" + "".join(f"{' ' * (i + 1)}if x > {i}:\n" for i in range(n)) + " " * (n + 1) + "x = 1\n return x\n"
    ),
    "functions": lambda n: "".join(f"{' ' * i}def f{i}(x):\n" for i in range(n)) + " " * n + "return x\n",
    "calls forward": lambda n: _functions(n, "    return {next}\n"),
    "nested calls forward": lambda n: _functions(n, f"    y = {'[' * 90}{{next}}{']' * 90}\n    return x\n"),
    "calls twice": lambda n: _functions(n, "    return {next} + {next}\n"),
    "lines": lambda n: "def f(x: int):\n" + "    x = x + 1\n" * n + "    return x\n",
    "brackets in a string": lambda n: f"def f(x):\n    y = '{'(' * n}'\n    return x\n",
    "string that hides brackets": lambda n: f"def f(x):\n    y = '\\'' + {'[' * n}1{']' * n}\n    return x\n",
    "comment that hides none": lambda n: f"def f(x):\n    # '\n    return {'(' * n}x{')' * n}\n",
    "decorators": lambda n: "@" * n + "def f(x):\n    return x\n",
    "table": lambda n: f"def f(x):\n    y = [{'1, ' * n}1]\n    return x\n",
    "arguments": lambda n: f"def f(x, {', '.join(f'a{i}' for i in range(n))}):\n    return x\n",
    "tuple type": lambda n: f"def f(x) -> Tuple[{'int, ' * n}int]:\n    return x\n",
    "unterminated": lambda n: "def f(x):\n    y = '''" + "[" * n,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_thousand_of_anything_are_refused_or_fine(shape: str) -> None:
    try:
        open_script(SHAPES[shape](10_000))
    except BackendError:
        assert shape not in ("brackets in a string", "table"), "a legal script was refused"


def _largest(shape: str) -> str:
    """The largest source of a shape that gets past the checks before the compiler."""
    least, most = 1, 20_000
    while least < most:
        middle = (least + most + 1) // 2
        try:
            limits.check_source(SHAPES[shape](middle))
            least = middle
        except BackendError:
            most = middle - 1
    return SHAPES[shape](least)


def test_what_the_limits_let_through_runs_on_a_usual_stack(tmp_path: Path) -> None:
    """In a process of its own, on a thread with the 8 MB that most systems give: a stack overflow would end it."""
    shapes = [shape for shape in SHAPES if shape not in ("lines", "table", "tuple type", "arguments")]
    for index, shape in enumerate(shapes):
        (tmp_path / f"{index:02}").write_text(_largest(shape))
    (tmp_path / "lines").write_text(SHAPES["lines"](15_000))
    (tmp_path / "tables").write_text(SHAPES["table"](50_000))
    program = textwrap.dedent(
        """
        import sys, threading
        from pathlib import Path
        from scripting import FakeHost, open_script, tensor
        from redisai_py.errors import BackendError

        def all_of_them():
            for path in sorted(Path(sys.argv[1]).iterdir()):
                try:
                    session = open_script(path.read_bytes())
                    for function in session._program._functions.values():
                        if len(session._program._functions) < 5:
                            values = {"int": 1, "float": 1.0, "bool": True, "Tensor": tensor_of_one, "List[int]": [1]}
                            function.call(*(values[kind] for kind in function.parameters))
                except (BackendError, RuntimeError, KeyError):
                    pass
                print(path.name, flush=True)

        import torch
        tensor_of_one = torch.ones(1, 1)
        torch._C._set_graph_executor_optimize(False)
        threading.stack_size(8 << 20)
        thread = threading.Thread(target=all_of_them)
        thread.start()
        thread.join()
        """
    )
    here = Path(__file__).resolve()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True, text=True, timeout=150, env={"PYTHONPATH": f"{here.parent}:{here.parents[2]}", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, f"ended after {done.stdout.splitlines()[-1:]}: {done.stderr[-500:]}"
    assert len(done.stdout.splitlines()) == len(shapes) + 2


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (b"def f(x):\n    return x\n\0", "ERR the script source contains a NUL byte"),
        (b"def f(x):\n    return '\xff'\n", "ERR the script source is not valid UTF-8 (byte 22)"),
        ("def f(x):\n    return '\udcff'\n", "ERR the script source is not valid UTF-8 (byte 22)"),
        (b"#" * (10 << 20), "ERR the script source has 10485760 bytes, more than the limit of 1048576"),
        ("def f(x):\n    return x\n" * 500_000, "ERR the script source has 11500000 bytes, more than the limit of 1048576"),
        ("def f(x):\n    return x[]\n", "ERR the script has an index with nothing between [ and ] (line 2)"),
        (
            "def f(x) -> Any:\n    return [x]\n",
            "ERR the script has a list where the type is Any, which torch cannot compile; give the list a name first",
        ),
    ],
    ids=["nul", "latin-1", "surrogate", "ten megabytes", "ten megabytes of functions", "no index", "a list as Any"],
)
def test_sources_that_never_reach_the_compiler(source: bytes | str, text: str) -> None:
    assert error_of(open_script, source) == text


def test_a_refusal_says_where() -> None:
    assert error_of(open_script, "def f(x):\n    y = 1\n    return " + "(" * 101) == (
        "ERR the script is too complex: more than 100 brackets nested (line 3)"
    )


def test_limits_leave_room_for_real_scripts() -> None:
    table = ", ".join(str(number / 7) for number in range(2000))
    words = ",\n        ".join(f'"word {number} (:"' for number in range(2000))
    ladder = "".join(f"    {'el' if number else ''}if name == 'case {number}':\n        y = {number}\n" for number in range(100))
    source = f"""
def lookup(name: str) -> int:
    y = -1
{ladder}    return y

def f(tensors: List[Tensor], keys: List[str], args: List[str]):
    weights = torch.tensor([{table}])
    words = [
        {words}
    ]
    total = {" + ".join(["weights.sum()"] * 100)}
    return total * 0 + lookup(args[0]) + len(words)
"""
    assert run(source, args=[b"case 42"])[0].item() == 2042.0


PIECES = [
    "def f(x):\n", "    ", "return ", "x", " + ", "(", ")", "[", "]", "{", "}", ":", ",", "\n", "if ", "else", "elif ", "for i in ",
    "while ", "lambda", "not ", "'", '"', "'''", "\\", "#", "# type: ", "0", "1e400", "0x", "é", "\t", "\r", "torch.ones", "redis.execute(",
    "'SET'", "List[", "int", "->", "@", "*", "**", "=", "==", "assert ", "raise ", "with ", "as ", "del ", "break", "continue", "pass",
    "print(", ";",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_text_is_a_script_or_an_error(parts: list[str]) -> None:
    try:
        open_script("def f(x):\n    " + "".join(parts))
    except BackendError as error:
        assert str(error)


# ---- scripts that break the run


@pytest.mark.parametrize(
    "body",
    [
        "    return torch.empty([1 << 50])\n",
        "    return torch.ones([1 << 40, 1 << 40])\n",
        "    return torch.ones([-1])\n",
        "    return tensors[0].as_strided([1 << 20], [1], 0)\n",
        "    return tensors[0][1 << 40]\n",
        "    return tensors[0].reshape([-2])\n",
        "    return torch.gather(tensors[0], 0, torch.tensor([1 << 40]))\n",
        "    return torch.nn.functional.embedding(torch.tensor([7]), tensors[0].view([1, 1]))\n",
        f"    return torch.tensor(int('{'9' * 400}'))\n",
        "    while True:\n        tensors.pop()\n",
    ],
)
def test_a_run_that_cannot_succeed_is_an_error(body: str) -> None:
    session = open_script(ENTRY.format("f") + body + ("    return tensors\n" if "while" in body else ""), ["f"])
    assert error_of(session.run, "f", [tensor([1])], (), (), 1, FakeHost())
    assert run("    return tensors\n", inputs=[tensor([1])])[0].tolist() == [1.0]


DIVISIONS = """
def f(tensors: List[Tensor], keys: List[str], args: List[str]):
    a, b = int(args[1]), int(args[2])
    if args[0] == "%":
        return torch.tensor(a % b)
    elif args[0] == "//":
        return torch.tensor(a // b)
    elif args[0] == "divmod":
        return torch.tensor(divmod(a, b)[0])
    elif args[0] == "gcd":
        return torch.tensor(math.gcd(a, b))
    elif args[0] == "item":
        return torch.tensor(tensors[0].item() % tensors[1].item())
    elif args[0] == "constant":
        return torch.tensor(a % -1 + a // -1 + a % 7 + a // 2)
    total = 0
    for i in range(a):
        if i > 2:
            total += i % b
    return torch.tensor(total)
"""
LOWEST = -(2**63)


@pytest.mark.parametrize("operator", ["%", "//", "divmod", "gcd", "item", "loop"])
@pytest.mark.parametrize(("a", "b"), [(7, 2), (-7, 2), (7, -2), (7, -1), (LOWEST, 1), (LOWEST + 1, -1), (0, 5)])
def test_division_is_that_of_python(operator: str, a: int, b: int) -> None:
    expected = {
        "%": a % b, "item": a % b, "//": a // b, "divmod": a // b, "gcd": math.gcd(a, b), "loop": sum(i % b for i in range(3, min(a, 9))),
    }  # fmt: skip
    args = [operator.encode(), b"%d" % a, b"%d" % b]
    (output,) = run(DIVISIONS, args=args, inputs=[tensor(a, "INT64"), tensor(b, "INT64")])
    assert output.item() == expected[operator]


@pytest.mark.parametrize(
    ("operator", "a", "b"),
    [(operator, 7, 0) for operator in ("%", "//", "divmod", "item", "loop")]
    + [(operator, LOWEST, -1) for operator in ("%", "//", "divmod", "gcd", "item", "constant")]
    + [("gcd", -1, LOWEST)],
)
def test_a_division_that_the_processor_refuses_is_an_error(operator: str, a: int, b: int) -> None:
    args = [operator.encode(), b"%d" % a, b"%d" % b]
    text = error_of(run, DIVISIONS, args=args, inputs=[tensor(a, "INT64"), tensor(b, "INT64")])
    assert "division" in text


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("args[0].replace('b', 'xy')", b"axyc"),
        ("str(args[0].count('b'))", b"1"),
        ("args[0].rsplit('b')[1]", b"c"),
        ("args[0].center(7)", b"  abc  "),
        ("args[0].center(int(args[2]))", b"abc"),
        ("args[0].ljust(int(args[2]))", b"abc"),
        ("args[0].rjust(5)", b"  abc"),
        ("'7'.zfill(int(args[2]))", b"7"),
        ("str(len([1, 2, 2]) + [1, 2, 2].count(2))", b"5"),
    ],
)
def test_strings_are_searched_and_padded_as_in_python(expression: str, result: bytes) -> None:
    host = FakeHost()
    run(f"    redis.execute('SET', 'k', {expression})\n", args=[b"abc", b"", b"%d" % LOWEST], n_outputs=0, host=host)
    assert host.keys[b"k"] == result


@pytest.mark.parametrize("expression", ["args[1].replace(args[1], '')", "str(args[1].count(args[1]))", "args[1].rsplit(args[1])[0]"])
def test_a_search_that_would_not_end_is_an_error(expression: str) -> None:
    text = error_of(run, f"    redis.execute('SET', 'k', {expression})\n", args=[b"abc", b""], n_outputs=0)
    assert text.endswith("ValueError: the text to look for is empty\n")
