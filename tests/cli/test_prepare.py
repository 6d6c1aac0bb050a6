"""`make run` on a bare machine: what it asks of the machine, and that no CUDA comes unasked."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA, CPU = [{"metadata": {"name": "torch"}}, {"metadata": {"name": "nvidia-cublas"}}], [{"metadata": {"name": "torch"}}]


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "tools" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for variable in ("TORCH_INDEX", "ALLOW_CUDA"):
        monkeypatch.delenv(variable, raising=False)
    return module


class Pip:
    """Stands for pip: answers dry runs by index, and records what was installed from where."""

    def __init__(self, reports: dict[str, list[dict[str, dict[str, str]]]]):
        self.reports = reports
        self.installed: list[str] = []

    def __call__(self, *arguments: str, capture: bool = False) -> str:
        index = arguments[arguments.index("--extra-index-url") + 1] if "--extra-index-url" in arguments else ""
        if "--dry-run" not in arguments:
            self.installed.append(index)
        return json.dumps({"install": self.reports[index]})


def test_a_cpu_build_is_installed_without_a_word(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "pip", pip := Pip({"": CPU}))
    prepare.install_torch()
    assert pip.installed == [""]
    assert capsys.readouterr().out == ""


def test_cuda_is_seen_before_it_is_fetched_and_the_cpu_build_taken(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "pip", pip := Pip({"": CUDA, prepare.CPU_INDEX: CPU}))
    prepare.install_torch()
    assert pip.installed == [prepare.CPU_INDEX]
    assert "ALLOW_CUDA=1" in capsys.readouterr().out


def test_without_a_cpu_build_anywhere_nothing_is_installed(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "pip", pip := Pip({"": CUDA, prepare.CPU_INDEX: CUDA}))
    with pytest.raises(SystemExit, match="TORCH_INDEX="):
        prepare.install_torch()
    assert pip.installed == []


def test_an_index_that_the_user_names_is_the_only_one_tried(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/cpu")
    monkeypatch.setattr(prepare, "pip", pip := Pip({"https://example.org/cpu": CUDA}))
    with pytest.raises(SystemExit, match=r"example\.org"):
        prepare.install_torch()
    assert pip.installed == []


def test_cuda_comes_when_it_is_asked_for(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_CUDA", "1")
    monkeypatch.setattr(prepare, "pip", pip := Pip({"": CUDA}))
    prepare.install_torch()
    assert pip.installed == [""]


def test_everything_missing_is_named_at_once_as_debian_packages(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("has_venv", "has_headers", "has_libpython"):
        monkeypatch.setattr(prepare, check, lambda *_: False)
    monkeypatch.setenv("CC", "no-such-compiler")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(SystemExit, match=f"apt-get install python{version}-venv python{version}-dev libpython{version} gcc libc6-dev"):
        prepare.check_machine()


def test_this_machine_has_what_it_takes(prepare: ModuleType) -> None:
    assert prepare.missing_packages() == []


def test_extras_that_name_extras_are_followed(prepare: ModuleType) -> None:
    project = prepare.read_project()["project"]
    named = {re.split(r"[<>=;\[ ]", line)[0] for line in prepare.requirements(project, ["all", "cli"])}
    assert {"numpy", "torch", "tensorflow-cpu", "onnxruntime", "ai-edge-litert", "click", "rich", "redis"} <= named
    assert not any("redisai-server" in line for line in prepare.requirements(project, list(project["optional-dependencies"])))


def test_the_stamp_changes_with_what_is_asked_for(prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare.wanted("all")
    assert prepare.wanted("all") == before
    assert prepare.wanted("all,cli") != before
    changed = tmp_path / "constraints.txt"
    changed.write_text(prepare.CONSTRAINTS.read_text() + "another==1\n")
    monkeypatch.setattr(prepare, "CONSTRAINTS", changed)
    assert prepare.wanted("all") != before


def test_every_requirement_is_pinned(prepare: ModuleType) -> None:
    """A direct requirement without a pin would install another version tomorrow."""
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = prepare.read_project()["project"]
    lines = prepare.requirements(project, ["all", "cli", "server", "test", "dev"])
    here = [line for line in lines if "!=" not in line]  # the one for other machines
    assert {re.split(r"[<>=;\[ ]", line)[0].lower().replace("_", "-") for line in here} <= pinned


def test_a_port_that_is_taken_is_said_before_anything_is_installed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = ["make", "--dry-run", "--no-print-directory", "run", f"PORT={port}"]
        commands = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        assert commands[0].endswith(f"tools/port.py {port}") and len(commands) > 3
        done = subprocess.run([sys.executable, "tools/port.py", str(port)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 1
        and done.stderr == f"Port {port} cannot be used (Address already in use); name another, as in: make run PORT={port + 1000}\n"
    )
    assert subprocess.run([sys.executable, "tools/port.py", str(port)], cwd=ROOT, check=False).returncode == 0
