"""Puts each deliberate defect into a copy of the tree, builds it and runs the tests that must notice.

    python -m seeded.check [name ...]        (from tests/)

First the named tests of all defects are run on the copy as it is: they must pass, or their failure would prove nothing. Then, defect by
defect: the patch is applied, the copy is built, and every test that the patch names must fail; under a sanitizer its report must say so.
The status is 1 when a defect survives, no longer applies, or a test fails without it. What was found is kept in results.jsonl.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .defects import HERE, ROOT, Defect, apply, defects

RESULTS = HERE / "results.jsonl"
PYTHON = ROOT / ".venv" / "bin" / "python"
BUILD = {"asan": "ASAN", "tsan": "TSAN"}  # by tier; the others are tested as they are released
REPORT = r"ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:"
TEST_SECONDS = 100  # a request that is never answered ends its test then
console = Console(highlight=False)


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    line = [str(word) for word in command]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, errors="replace", check=False)


@dataclass(frozen=True)
class Outcome:
    """What the named tests said: `failed` of them, and all that was written."""

    failed: tuple[str, ...]
    said: str


class Copy:
    """A copy of the tree in which defects come and go. Its libraries go into an environment of their own in build/<tier>/env, which finds
    the copy's package and none of the original."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).stdout
        for name in filter(None, listed.split("\0")):
            if (source := ROOT / name).is_file():
                target = path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        if (cache := ROOT / ".cache").exists():
            (path / ".cache").mkdir()
            for kept in ("servers", "real-models"):
                (path / ".cache" / kept).symlink_to(cache / kept)
        run("git", "init", "-q", cwd=path)

    @contextmanager
    def having(self, defect: Defect) -> Iterator[None]:
        """Raises AssertionError when the patch does not fit."""
        before = {file: (self.path / file).read_bytes() for file in defect.files}
        done = apply(defect, self.path)
        assert done.returncode == 0, f"does not apply: {done.stderr}"
        try:
            yield
        finally:
            for file, content in before.items():
                (self.path / file).write_bytes(content)

    def build(self, tier: str) -> None:
        """Raises AssertionError with what the compiler says."""
        folder = self.path / "build" / BUILD.get(tier, "Release").lower()
        options = [f"-DCMAKE_BUILD_TYPE={BUILD.get(tier, 'Release')}", f"-DPython_EXECUTABLE={PYTHON}", f"-DREDISAI_ENV={folder / 'env'}"]
        cmake = shutil.which("cmake") or str(PYTHON.with_name("cmake"))
        for command in ((cmake, "-S", ".", "-B", folder, *options), (cmake, "--build", folder, "--parallel", "2")):
            done = run(*command, cwd=self.path)
            assert done.returncode == 0, f"does not build: {(done.stdout + done.stderr)[-2000:]}"

    def test(self, tier: str, tests: tuple[str, ...]) -> Outcome:
        """Raises AssertionError when pytest could not run them."""
        folder = self.path / "build" / BUILD.get(tier, "Release").lower()
        for old in folder.glob("report.*"):
            old.unlink()
        env = {**os.environ, "PYTHONPATH": str(self.path), "REDISAI_MODULE": str(folder / "env" / "redisai.so")}
        if tier in BUILD:
            env |= {"SANITIZER": tier, "REDISAI_TEST_SERVER": str(self.path / "tools" / "sanitized-server")}
        options = ("-q", "-rfE", "--tb=short", f"--timeout={TEST_SECONDS}", "-p", "no:cacheprovider")
        done = run(PYTHON, "-m", "pytest", *options, *tests, cwd=self.path, env=env)
        assert done.returncode in (0, 1), f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        reports = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("report.*")))
        lines = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        failed = tuple(test for test in tests if any(re.match(rf"{re.escape(test)}(\[|$)", line) for line in lines))
        return Outcome(failed, done.stdout + reports)


# ---- one defect after the other ------------------------------------------------------------------------------------------------------


def verdict(defect: Defect, outcome: Outcome) -> str:
    """Empty when the defect was noticed as it should be, else what is wrong."""
    if defect.tier in BUILD:
        if not re.search(REPORT, outcome.said):
            return "SURVIVES: the sanitizer reports nothing"
    elif surviving := sorted(set(defect.tests) - set(outcome.failed)):
        return f"SURVIVES {', '.join(surviving)}"
    if defect.shows and not re.search(defect.shows, outcome.said):
        return f"fails for another reason: nothing says {defect.shows}"
    return ""


def noticed(copy: Copy, defect: Defect) -> str:
    try:
        with copy.having(defect):
            copy.build(defect.tier)
            outcome = copy.test(defect.tier, defect.tests)
    except AssertionError as error:
        return str(error)
    if wrong := verdict(defect, outcome):
        (copy.path / f"{defect.name}.log").write_text(outcome.said)
    return wrong


def sound(copy: Copy, chosen: list[Defect]) -> list[str]:
    """Named tests that fail without any defect, or report something."""
    wrong = []
    for tier in dict.fromkeys(defect.tier for defect in chosen):
        copy.build(tier)
        tests = tuple(dict.fromkeys(test for defect in chosen if defect.tier == tier for test in defect.tests))
        outcome = copy.test(tier, tests)
        wrong += [f"{test} ({tier})" for test in outcome.failed]
        if tier in BUILD and re.search(REPORT, outcome.said):
            wrong.append(f"a report of {tier}")
        if wrong:
            console.print(outcome.said[-4000:], markup=False)
    return wrong


def keep(rows: dict[str, dict[str, object]]) -> None:
    """The last result of each defect that there still is."""
    kept = {row["defect"]: row for row in map(json.loads, RESULTS.read_text().splitlines())} if RESULTS.exists() else {}
    names = [defect.name for defect in defects()]
    merged = {**kept, **rows}
    RESULTS.write_text("".join(json.dumps(merged[name]) + "\n" for name in names if name in merged))


def main(names: list[str]) -> int:
    chosen = [defect for defect in defects() if not names or defect.name in names]
    if unknown := set(names) - {defect.name for defect in chosen}:
        raise SystemExit(f"no such defect: {', '.join(sorted(unknown))}")
    commit = run("git", "rev-parse", "--short=12", "HEAD", cwd=ROOT).stdout.strip()
    table = Table("defect", "tier", "noticed by", "seconds", title=f"{len(chosen)} deliberate defects at {commit}")
    rows: dict[str, dict[str, object]] = {}
    folder = Path(tempfile.mkdtemp(prefix="redisai-seeded-"))
    copy = Copy(folder)
    if wrong := sound(copy, chosen):
        console.print(f"[red]these fail without any defect:[/] {', '.join(wrong)}")
        return 1
    for defect in chosen:
        started = time.monotonic()
        wrong_here = noticed(copy, defect)
        seconds = round(time.monotonic() - started)
        console.print(f"{defect.name}: {wrong_here or 'noticed'} ({seconds} s)", markup=False)
        by = ", ".join(test.rpartition("::")[2] for test in defect.tests)
        table.add_row(f"{defect.name}\n[dim]{defect.says}[/]", defect.tier, f"[red]{wrong_here}[/]" if wrong_here else by, str(seconds))
        if not wrong_here:
            when = datetime.now(UTC).date().isoformat()
            rows[defect.name] = {
                "defect": defect.name,
                "tier": defect.tier,
                "commit": commit,
                "when": when,
                "noticed_by": list(defect.tests),
            }
    console.print(table)
    keep(rows)
    if len(rows) < len(chosen):
        console.print(f"[red]{len(chosen) - len(rows)} of {len(chosen)} survive[/]; the copy and what its tests said are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
