"""Models and scripts that are broken, opened by the backends as a server's loader opens them.

The libraries behind the backends are C++ and trust their input more than we do. So each target runs in a child process that may end:
input number i of a run depends on the seed and i alone, the child says in a shared page which one it is at, and the parent, when the child
is gone or has stood still for too long, knows which input it was, keeps it and starts the next child behind it.

What must hold: `open()` returns a session or raises BackendError, within a time and a memory; nothing else leaves it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from servers import ROOT

from . import mutations
from .findings import Counts, Finding, corpus

FOLDERS = (ROOT / "tests" / "models", ROOT / "examples" / "models")
LARGEST = 16_000  # bytes of a model to begin with: small ones have the same parts as large ones
MEMORY = 6 << 30  # bytes of address space that a child may take beside what its library has
STILL = 60.0  # seconds of processor time for one input
MOST_FINDINGS = 20  # of one run

# ---- input -------------------------------------------------------------------------------------------------------------------------

Maker = Callable[[random.Random], bytes]


def _models(*suffixes: str) -> list[bytes]:
    paths = [path for folder in FOLDERS for path in sorted(folder.iterdir()) if path.suffix in suffixes]
    kept = [path for path in paths if path.stat().st_size <= LARGEST and "evil" not in path.name and "infinite" not in path.name]
    return [path.read_bytes() for path in kept]


Change = Callable[[random.Random, bytes, bytes], bytes]


def _made_of(known: Sequence[bytes], *changes: Change) -> Maker:
    def make(rng: random.Random) -> bytes:
        return rng.choice(changes)(rng, rng.choice(known), rng.choice(known))

    return make


def _onnx() -> Maker:
    return _made_of(_models(".onnx"), *[mutations.change_protobuf] * 4, mutations.change_bytes)


def _tf() -> Maker:
    graphs, archives = _models(".pb"), _models(".zip")
    graph = _made_of(graphs, *[mutations.change_protobuf] * 4, mutations.change_bytes)
    archive = _made_of(archives, lambda rng, a, b: mutations.change_archive(rng, a, b, ".pb"))
    return lambda rng: (archive if rng.random() < 0.05 else graph)(rng)


def _tflite() -> Maker:
    return _made_of(_models(".tflite"), *[mutations.change_numbers] * 4, mutations.change_bytes)


def _torch() -> Maker:
    return _made_of(_models(".pt"), *[mutations.change_archive] * 6, mutations.change_bytes)


SCRIPTS = (Path(__file__).parent / "scripts.txt").read_bytes().split(b"---\n")


def _expression(rng: random.Random, depth: int = 0) -> str:
    """Anything that the grammar of TorchScript has, mostly ill typed."""
    if depth > 5 or rng.random() < 0.3:
        return rng.choice(("x", "y", "1", "-2.5", "'s'", "None", "True", "[]", "{}", "[1, 2]", "torch", "math.pi", "x.shape", "9" * 30))
    one, two = _expression(rng, depth + 1), _expression(rng, depth + 1)
    forms = ("({0} + {1})", "({0} ** {1})", "({0} // {1})", "{0}[{1}]", "{0}[{1}:{0}]", "[{0}, {1}]", "({0}, {1})", "f({0})",
              "({0} if {1} else {0})", "(not {0})", "{0}.sum({1})", "{0}.to({1})", "torch.add({0}, {1})", "torch.zeros({0})", "len({0})",
              "[{0} for i in {1}]", "({0} < {1})", "({0} is {1})", "({0} in {1})", "int({0})", "str({0})", "{{{0}: {1}}}",
              "torch.jit.annotate(List[int], {0})", "isinstance({0}, {1})", "getattr({0}, 'x')", "redis.execute({0}, {1})",
              "'%s' % {0}", "*{0}")  # fmt: skip
    return rng.choice(forms).format(one, two)


def _statements(rng: random.Random, indent: str, depth: int = 0) -> str:
    lines = []
    for _ in range(rng.randrange(1, 4)):
        value = _expression(rng)
        heads = (f"if {value}:", f"while {value}:", f"for i in {value}:", f"with {value} as z:", f"def g(z={value}):")
        plain = (f"x = {value}", f"x, y = {value}", f"x += {value}", f"x[{value}] = y", f"return {value}", f"assert {value}, {value}",
                 "break", "pass", f"raise {value}", f"x: List[Tensor] = {value}", f"print({value})", f"del {value}")  # fmt: skip
        if depth < 3 and rng.random() < 0.3:
            lines.append(f"{indent}{rng.choice(heads)}\n{_statements(rng, indent + '    ', depth + 1)}")
        else:
            lines.append(f"{indent}{rng.choice(plain)}\n")
    return "".join(lines)


def _script() -> Maker:
    words = _made_of(SCRIPTS, *[mutations.change_words] * 5, mutations.change_bytes)
    return lambda rng: words(rng) if rng.random() < 0.7 else f"def f(x, y: int):\n{_statements(rng, '    ')}".encode()


# ---- opening -----------------------------------------------------------------------------------------------------------------------

Opener = Callable[[bytes], None]


def _backend(name: str) -> Callable[[], Opener]:
    def prepare() -> Opener:
        from redisai_py.backends import backend_class
        from redisai_py.backends.base import ModelSpec, Settings
        from redisai_py.testing import FakeMeter

        settings = Settings(intra_op=1, inter_op=1)
        backend = backend_class(name).load(settings, FakeMeter())
        specs = [ModelSpec("k", "CPU")]
        if name == "TF":
            signatures = (("x", "y"), ("a b", "c"), ("x", "probabilities"), ("x", "sum"), ("x", "first"))
            specs = [ModelSpec("k", "CPU", tuple(ins.split()), tuple(outs.split())) for ins, outs in signatures]

        def open_(blob: bytes) -> None:
            spec = next((s for s in specs if all(n.encode() in blob for n in (*s.inputs, *s.outputs))), specs[0])
            backend.open(blob, spec, settings).close()

        return open_

    return prepare


def _prepare_script() -> Opener:
    from redisai_py.backends.base import Settings
    from redisai_py.scripts import ScriptSession

    def open_(source: bytes) -> None:
        ScriptSession(source, [], "CPU", Settings()).close()

    return open_


@dataclass(frozen=True)
class Target:
    maker: Callable[[], Maker]
    prepare: Callable[[], Opener]
    what: str


TARGETS = {
    "torch": Target(_torch, _backend("TORCH"), "TorchScript archives, into the backend's open()"),
    "tf": Target(_tf, _backend("TF"), "GraphDefs and SavedModels, into the backend's open()"),
    "onnx": Target(_onnx, _backend("ONNX"), "ONNX models, into the backend's open()"),
    "tflite": Target(_tflite, _backend("TFLITE"), "TensorFlow Lite models, into the backend's open()"),
    "script": Target(_script, _prepare_script, "sources of scripts, into the compiler"),
}


def blob(name: str, seed: int, i: int) -> bytes:
    """Input number `i` of a run."""
    return _maker(name)(random.Random(f"{seed}:{i}"))


_makers: dict[str, Maker] = {}


def _maker(name: str) -> Maker:
    if name not in _makers:
        _makers[name] = TARGETS[name].maker()
    return _makers[name]


# ---- the child ---------------------------------------------------------------------------------------------------------------------

PAGE = struct.Struct("<QQQ")  # the input it is at, how many were tried, how many were opened


def _limit_memory() -> None:
    """An allocation of the size that a model asks for fails, instead of taking the memory of the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(name: str, page_path: str, inputs: Iterator[tuple[int, bytes]]) -> None:
    from redisai_py.errors import BackendError

    with Path(page_path).open("r+b") as file, mmap.mmap(file.fileno(), PAGE.size) as page:
        open_ = TARGETS[name].prepare()
        _limit_memory()
        opened = 0
        for tried, (i, data) in enumerate(inputs):
            page[:] = PAGE.pack(i, tried, opened)
            with contextlib.suppress(BackendError):
                open_(data)
                opened += 1
            page[:] = PAGE.pack(i + 1, tried + 1, opened)
    os._exit(0)  # what the libraries do at exit is no matter here


def child(arguments: list[str]) -> None:
    """`name page seed first last`, or `name page` and paths on standard input."""
    import faulthandler

    faulthandler.enable()
    name, page, *numbers = arguments
    if numbers:
        seed, first, last = map(int, numbers)
        _child(name, page, ((i, blob(name, seed, i)) for i in range(first, last)))
    else:
        _child(name, page, enumerate(Path(line).read_bytes() for line in sys.stdin.read().splitlines()))


# ---- the parent --------------------------------------------------------------------------------------------------------------------


class Run:
    """One child. `wait()` returns what went wrong, or "" when it came to the end."""

    def __init__(self, name: str, *numbers: int, files: Sequence[Path] = ()) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as page:
            page.write(bytes(PAGE.size))
        self.page = Path(page.name)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "fuzz.models", name, str(self.page), *map(str, numbers)]
        self.process = subprocess.Popen(
            command, cwd=ROOT / "build", env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.errors
        )
        assert self.process.stdin
        self.process.stdin.write("\n".join(map(str, files)).encode())
        self.process.stdin.close()

    def state(self) -> tuple[int, int, int]:
        return PAGE.unpack(self.page.read_bytes())

    def _processor_seconds(self) -> float:
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self) -> str:
        at, since = -1, 0.0
        while self.process.poll() is None:
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                spent = self._processor_seconds()
                if self.state()[0] != at or self.state()[1] == 0:
                    at, since = self.state()[0], spent
                elif spent - since > STILL:
                    self.process.kill()
                    self.process.wait()
                    return f"it took more than {STILL:.0f} s"
        if self.process.returncode == 0:
            return ""
        self.errors.seek(0)
        return f"the process ended with {self.process.returncode}: {self.errors.read()[-6000:].decode(errors='replace')}"

    def close(self) -> None:
        self.page.unlink()
        self.errors.close()


def replay(name: str) -> int:
    """Opens every input of the corpus; how many they are. Raises AssertionError when one of them still does harm."""
    files = corpus(name)
    if files:
        run = Run(name, files=files)
        wrong, at = run.wait(), run.state()[0]
        run.close()
        assert not wrong, f"{files[at]}: {wrong}"
    return len(files)


def fuzz(name: str, seed: int, count: int) -> Counts:
    """`count` inputs. A finding does not end the run, but 20 do; their inputs are in the corpus then."""
    first = opened = findings = 0
    while first < count and findings < MOST_FINDINGS:
        run = Run(name, seed, first, count)
        wrong, (at, _, now) = run.wait(), run.state()
        run.close()
        opened += now
        first = at + bool(wrong)
        if wrong:
            findings += 1
            sys.stderr.write(f"{Finding(name, blob(name, seed, at), wrong)}\n")
    return {"count": first, "opened": opened, "findings": findings}


def target(name: str) -> Callable[[int, int], Counts]:
    """What `run.py` calls."""

    def run(seed: int, count: int) -> Counts:
        return fuzz(name, seed, count)

    run.__doc__ = TARGETS[name].what
    return run


if __name__ == "__main__":
    child(sys.argv[1:])
