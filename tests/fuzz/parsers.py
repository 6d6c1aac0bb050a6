"""The parsers and decoders in C, in a process of their own: parsers/*.c say what goes in and what must hold.

libFuzzer looks for input that takes new ways through the code. It comes with clang; here the library that the atheris package brings is
linked to what gcc builds (parsers/coverage.c). Without it the inputs of the corpus are run, which needs a compiler alone. Both builds are
under AddressSanitizer and UndefinedBehaviorSanitizer where the compiler brings them. Once it finds no new ways, a storm
(parsers/storm.c) goes the known ones with far more inputs a second.

The corpus holds, for each target, the smallest inputs that libFuzzer found for each way through the code: `python -m fuzz.parsers rdb`
(from tests/) adds what the long runs found since and throws out what is covered twice, but for findings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import rdb_payload as rdb
from servers import ROOT

from . import restore
from .findings import CORPUS, Counts, Finding, corpus

HERE = Path(__file__).parent / "parsers"
SHIM = ROOT / "shim"
SOURCES = ["persist.c", "tensor.c", "plan.c", "mem.c", "redis_api.c"]
#: target -> the files that it needs beside them
TARGETS = {"rdb": [], "tensor": [], "plan": [], "flow": ["flows.c", "flow_persist.c"]}
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function"]
FLAGS = ["-O1", "-g", "-fPIC", "-std=gnu11", "-D_GNU_SOURCE", "-fno-omit-frame-pointer", *WARNINGS, f"-I{SHIM}", f"-I{HERE}"]
COVERAGE = ["-fsanitize-coverage=trace-pc,trace-cmp"]
#: libFuzzer has a trace_pc of its own, which says that it does nothing: ours is linked first and wins
MULDEFS = "-Wl,-z,muldefs"
#: inputs are at most this long: enough for 64 dims and for lists in lists, short enough to try many
LONGEST = {"rdb": 512, "tensor": 512, "plan": 512, "flow": 512}
#: found by libFuzzer since the corpus was last made smaller; not kept in the repository
FOUND = ROOT / "build" / "fuzz" / "found"

# ---- building ----------------------------------------------------------------------------------------------------------------------


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def libfuzzer() -> Path | None:
    """The library of libFuzzer that atheris installs beside itself; None where it is not installed."""
    found = importlib.util.find_spec("atheris")
    path = Path(found.origin).parent.parent / "libclang_rt.fuzzer_no_main.a" if found and found.origin else None
    return path if path and path.exists() else None


def sanitizers() -> list[str]:
    cc = compiler()
    assert cc
    found = subprocess.run([cc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    return ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if Path(found).is_absolute() else []


def _digest(*words: str) -> str:
    h = hashlib.sha256("\0".join(words).encode())
    for path in [*sorted(SHIM.glob("*.[ch]")), *sorted(HERE.glob("*.[ch]")), Path(__file__)]:
        h.update(path.read_bytes())
    return h.hexdigest()[:12]


def _compile(source: Path, object_file: Path, options: list[str]) -> Path:
    subprocess.run([str(compiler()), *FLAGS, *options, "-c", str(source), "-o", str(object_file)], check=True)
    return object_file


def _weakened(object_file: Path) -> Path:
    """What the object asks for and nobody has is NULL: the target brings those of its neighbours that an input can reach."""
    subprocess.run(["objcopy", "--weaken", str(object_file)], check=True)
    return object_file


def built(storm: bool = False) -> dict[str, Path]:
    """An executable for each target, driven by libFuzzer, storm.c or replay.c. Built once for each state of the sources, in build/fuzz/."""
    library, checks = None if storm else libfuzzer(), sanitizers()
    driver = "storm.c" if storm else "coverage.c" if library else "replay.c"
    folder = ROOT / "build" / "fuzz" / _digest(driver, str(library), *checks)
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        scratch.mkdir(parents=True)
        options = [*checks, *(COVERAGE if library else [])]
        shared = [_compile(SHIM / name, scratch / f"shim_{name}.o", options) for name in SOURCES]
        main = _compile(HERE / driver, scratch / "main.o", checks)
        ends = [str(library), "-lstdc++", MULDEFS] if library else []
        for name, more in TARGETS.items():
            target = _compile(HERE / f"{name}.c", scratch / f"{name}.o", options)
            own = [_weakened(_compile(SHIM / source, scratch / f"shim_{source}.o", options)) for source in more]
            whole = scratch / f"{name}.whole.o"
            subprocess.run([str(compiler()), "-r", "-nostdlib", "-o", str(whole), *map(str, (target, *shared, *own, main))], check=True)
            subprocess.run(
                [
                    str(compiler()),
                    *checks,
                    str(whole),
                    *ends,
                    "-lpthread",
                    "-lm",
                    "-o",
                    str(scratch / name),
                ],
                check=True,
            )
        scratch.rename(folder)
    return {name: folder / name for name in TARGETS}


# ---- running -----------------------------------------------------------------------------------------------------------------------

ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def replay(target: str) -> int:
    """Runs every input of the corpus; how many they are. Raises AssertionError with what went wrong."""
    files = corpus(target)
    done = subprocess.run([str(built()[target]), *map(str, files)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout[-500:] + done.stderr)[-6000:]
    return len(files)


def fuzz(target: str, seed: int, count: int) -> Counts:
    """libFuzzer for `count` inputs, beginning with the corpus. Raises Finding."""
    binary = built()[target]
    assert libfuzzer(), "libFuzzer comes with atheris: pip install atheris"
    found = FOUND / target
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        options = [f"-runs={count}", f"-seed={seed}", f"-max_len={LONGEST[target]}", "-use_value_profile=1", f"-dict={HERE / 'words.dict'}"]
        options += ["-print_final_stats=1", "-detect_leaks=0", "-timeout=20", f"-artifact_prefix={scratch}/", "-verbosity=1"]
        command = [str(binary), *options, str(found), str(CORPUS / target)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False)
        for path in Path(scratch).iterdir():
            raise Finding(target, path.read_bytes(), done.stderr[-6000:])
        assert done.returncode == 0, done.stderr[-3000:]
    features = re.findall(r"ft: (\d+)", done.stderr)
    return {"features": int(features[-1])}


def storm(target: str, seed: int, count: int) -> Counts:
    """`count` inputs of the corpus, changed at random. Raises Finding."""
    with tempfile.TemporaryDirectory() as scratch:
        artifact = Path(scratch) / "input"
        command = [str(built(storm=True)[target]), str(seed), str(count), str(artifact), *map(str, corpus(target))]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False)
        if artifact.exists():
            raise Finding(target, artifact.read_bytes(), done.stderr[-6000:])
        assert (done.returncode, done.stdout) == (0, f"{count}\n"), done.stderr[-3000:]
    return {}


def storm_target(name: str) -> Callable[[int, int], Counts]:
    """What `run.py` calls for a storm on a target in C."""

    def run(seed: int, count: int) -> Counts:
        return storm(name, seed, count)

    run.__doc__ = f"the inputs that {name} found, changed at random, without counting coverage"
    return run


def target(name: str) -> Callable[[int, int], Counts]:
    """What `run.py` calls for a target in C."""

    def run(seed: int, count: int) -> Counts:
        return fuzz(name, seed, count)

    first = (HERE / f"{name}.c").read_text().splitlines()[0]
    run.__doc__ = re.sub(r"^/\* \S+ -- ", "in C, libFuzzer: ", first).removesuffix(" */")
    return run


# ---- the corpus --------------------------------------------------------------------------------------------------------------------

LINES = """
AI.MODELEXECUTE m11 INPUTS 1 a OUTPUTS 1 b
AI.MODELEXECUTE m21 INPUTS 2 a b OUTPUTS 1 c TIMEOUT 100
AI.MODELEXECUTE m INPUTS 1 -a OUTPUTS 2 b c
AI.MODELRUN m12 TIMEOUT 5 INPUTS a OUTPUTS b c
AI.SCRIPTEXECUTE s f KEYS 2 a b INPUTS 2 c d ARGS 1 x OUTPUTS 1 e TIMEOUT 7
AI.SCRIPTRUN s f TIMEOUT 7 INPUTS a $ b c OUTPUTS d
AI.DAGEXECUTE LOAD 2 a b PERSIST 1 c TIMEOUT 9 |> AI.MODELEXECUTE m21 INPUTS 2 a b OUTPUTS 1 c |> AI.TENSORGET c VALUES
AI.DAGEXECUTE ROUTING r |> AI.TENSORSET a INT8 VALUES 1 |> AI.SCRIPTEXECUTE s f INPUTS 1 a OUTPUTS 1 b
AI.DAGEXECUTE_RO LOAD 1 a |> AI.MODELEXECUTE m11 INPUTS 1 a OUTPUTS 1 b |> AI.TENSORGET b META BLOB
AI.DAGRUN LOAD 1 a PERSIST 2 b c |> AI.MODELRUN m11 INPUTS a OUTPUTS b |> AI.SCRIPTRUN s f INPUTS b OUTPUTS c
AI.DAGRUN_RO LOAD 1 a |> AI.MODELRUN m11 INPUTS a OUTPUTS b
""".strip().splitlines()

SETS = """
FLOAT 2 2 VALUES 1 2.5 -inf 1e30
DOUBLE 2 BLOB 0123456789abcdef
INT8 3 VALUES 1 -128 127
INT16 1 2 BLOB abcd
INT32 2 VALUES -2147483648 2147483647
INT64 1 VALUES 9223372036854775807
UINT8 VALUES 255
UINT16 2 BLOB abcd
BOOL 2 VALUES 0 1
STRING 2 VALUES a bc
STRING 2 BLOB a\0b\0
FLOAT 3 4
!FLOAT 0 3 BLOB\x20
@INT8 33792 BLOB a
""".strip().splitlines()


def flows() -> list[bytes]:
    """The aux data of an RDB: how many sources, and the words of each, after their number."""
    gears = ["0-1", "default", "0", "GB().run()", "1", "numpy", "2", "0-2", "KeysReader", "0", "4", "prefix", "a*", "mode", "async"]
    gears += ["0-3", "CommandReader", "1", "2", "trigger", "go"]
    small = ["1", "", "7", "", "0", "1", "2", "StreamReader", "0", "0"]
    made = [[], [small], [gears], [gears, small], [small, small]]
    return [
        b"\0" + rdb.number(len(m)) + b"".join(rdb.number(len(s)) + b"".join(rdb.string(w.encode()) for w in s) for s in m) for m in made
    ]


def first_inputs(name: str) -> list[bytes]:
    """What a corpus begins with: one input of every kind."""
    if name == "plan":
        return [line.encode() for line in LINES]
    if name == "tensor":
        return [line.encode() for line in SETS]
    if name == "flow":
        return flows()
    kinds = list(rdb.IDS)
    return [bytes((kinds.index(kind) + 3 * version, 7)) + b"".join(fields) for kind, version, fields in restore.seeds()]


def reduce(name: str) -> None:
    """Makes the corpus anew of the first inputs, itself and what was found: the fewest inputs that take every way through the code."""
    with tempfile.TemporaryDirectory() as scratch:
        seeds, kept = Path(scratch) / "seeds", Path(scratch) / "kept"
        seeds.mkdir()
        kept.mkdir()
        for i, data in enumerate(first_inputs(name)):
            (seeds / str(i)).write_bytes(data)
        sources = [folder for folder in (seeds, CORPUS / name, FOUND / name) if folder.exists()]
        subprocess.run([str(built()[name]), "-merge=1", str(kept), *map(str, sources)], env=ENVIRONMENT, check=True)
        for path in corpus(name):
            if not path.name.startswith("finding-"):
                path.unlink()
        shutil.copytree(kept, CORPUS / name, dirs_exist_ok=True)


if __name__ == "__main__":
    reduce(sys.argv[1])
