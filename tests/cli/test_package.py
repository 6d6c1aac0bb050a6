"""The wheel: what is in it, and that a server finds the environment it was installed into from the module's own path."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from servers import ROOT, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", f"--config-settings=build-dir={directory / 'build'}"]
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", *options, "-w", str(directory), str(ROOT)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(directory.glob("*.whl"))


def test_the_wheel_holds_both_libraries_and_nothing_of_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modes = {item.filename: item.external_attr >> 16 for item in archive.infolist()}
    assert modes["redisai_py/redisai.so"] & 0o111, "servers refuse a module without execute permission"
    assert f"redisai_py/_redisai{sysconfig.get_config_var('EXT_SUFFIX')}" in modes
    assert len([name for name in modes if name.endswith(".so")]) == 2
    assert not [name for name in modes if name.endswith((".python", ".c", ".pyc")) or "tests" in name]


def test_every_python_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "redisai_py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    with zipfile.ZipFile(wheel) as archive:
        assert set(tracked) <= set(archive.namelist())
    assert len(tracked) > 20


def test_redisai_so_needs_no_python_and_exports_what_servers_look_for(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract("redisai_py/redisai.so", tmp_path)
    symbols = subprocess.run(["nm", "--dynamic", library], capture_output=True, text=True, check=True).stdout.split("\n")
    undefined = [line.split()[-1] for line in symbols if " U " in line]
    defined = [line.split()[-1] for line in symbols if " T " in line]
    assert not [name for name in undefined if name.startswith(("Py", "_Py", "RedisModule"))]
    assert "RedisModule_OnLoad" in defined


def test_an_installed_module_runs_the_python_of_its_environment(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    packages = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "numpy.pth").write_text(str(Path(np.__file__).parent.parent))  # pip would have installed it here
    module = packages / "redisai_py" / "redisai.so"
    module.chmod(0o755)  # as pip does
    monkeypatch.setenv("REDISAI_MODULE", str(module))
    with running() as server, server.client() as client:
        assert f"runs from {tmp_path}/env/bin/python" in server.log()
        assert client.execute_command("AI.TENSORSET", "t", "FLOAT", 2, "VALUES", 1, 2) == b"OK"
        assert client.execute_command("AI.TENSORGET", "t", "BLOB") == np.array([1, 2], np.float32).tobytes()
