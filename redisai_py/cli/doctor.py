"""`redisai doctor`: what is here, what is missing, and the line that mends it.

Each check looks at one thing and answers with findings; a check that itself breaks is a finding too. Backends are looked up, not imported,
unless asked: importing all four takes ten seconds. --start is the check of checks: a server that loads everything.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from .. import __version__
from ..install import (
    BACKEND_PACKAGES,
    BackendPackage,
    ServerNotFoundError,
    extension_path,
    find_libpython,
    find_server,
    libpython_name,
    module_path,
)
from . import machine, systemd
from .address import RefusedError, address, address_options
from .finding import Finding
from .output import console, write, write_json
from .resp import Failure, Status

NEWEST_PYTHON = (3, 13)
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
HEALTH_SECONDS = 3.0


@dataclass(frozen=True)
class Options:
    server: str | None  # the server to look at, None for the one `serve` would take
    imports: bool  # import each backend in a process of its own
    start: bool = False  # load everything into a server of our own


# ---- checks ------------------------------------------------------------------------------------------------------------------------


def check_python(options: Options) -> list[Finding]:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info[:2] > NEWEST_PYTHON:
        return [Finding("Python", "note", found, "newer than any this was tested with (3.11 to 3.13)")]
    return [Finding("Python", "ok", found)]


def check_libpython(options: Options) -> list[Finding]:
    found = find_libpython()
    if found is None:
        cure = (
            f"Debian and Ubuntu: apt-get install libpython{VERSION}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {VERSION}"
        )
        return [Finding("libpython", "problem", f"{libpython_name()} cannot be loaded", cure)]
    path, version = found
    if version.rsplit(".", 1)[0] != VERSION:
        return [Finding("libpython", "problem", f"{path} is Python {version}", f"the environment is {VERSION}; install libpython{VERSION}")]
    if version != sys.version.split()[0]:
        cure = f"the environment runs {sys.version.split()[0]}: make it again with the interpreter that this library belongs to"
        return [Finding("libpython", "note", f"{path} is Python {version}", cure)]
    return [Finding("libpython", "ok", f"{version} at {path}")]


def check_module(options: Options) -> list[Finding]:
    try:
        path = module_path()
        extension_path()
    except FileNotFoundError as error:
        cure = "`make build` in a checkout, else `pip install --force-reinstall --no-deps redisai-server` with this Python"
        return [Finding("module", "problem", str(error), cure)]
    if not os.access(path, os.X_OK):
        return [Finding("module", "problem", f"{path} is not executable, and servers refuse to load it", f"chmod +x {path}")]
    return [Finding("module", "ok", f"{__version__} at {path}")]


def check_numpy(options: Options) -> list[Finding]:
    try:
        return [Finding("numpy", "ok", importlib.metadata.version("numpy"))]
    except importlib.metadata.PackageNotFoundError:
        return [Finding("numpy", "problem", "not installed", "pip install 'numpy>=1.26,<3'")]


def check_backends(options: Options) -> list[Finding]:
    findings = [check_backend(package, options.imports) for package in BACKEND_PACKAGES]
    if all(finding.found == ABSENT for finding in findings):
        findings.append(Finding("backends", "problem", "none is installed", "pip install 'redisai-server[all]', or one of the lines above"))
    return findings


ABSENT = "not installed"


def check_backend(package: BackendPackage, imports: bool) -> Finding:
    installed = package.installed()
    if installed is None:
        return Finding(package.name, "note", ABSENT, package.command)
    found = " ".join(installed)
    if (place := package.location()) and place not in isolated_path():
        hidden = f"{found} is in {place}, which a server does not see: its Python is isolated from the user's packages and PYTHONPATH"
        return Finding(package.name, "problem", hidden, f"{sys.executable} -m pip install --no-user {installed[0]}")
    if imports and (error := import_error(package.module)):
        return Finding(package.name, "problem", f"{found} cannot be imported: {error}", f"pip install --force-reinstall {installed[0]}")
    return Finding(package.name, "ok", found)


@cache
def isolated_path() -> frozenset[str]:
    """Where the Python in a server looks for packages."""
    line = [sys.executable, "-I", "-c", "import sys; print(*sys.path, sep='\\n')"]
    return frozenset(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split("\n"))


def import_error(module: str) -> str:
    """The last line of what importing it says, empty when it works. In a process of its own: a broken library may end it."""
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"])[-1]


def check_server(options: Options) -> list[Finding]:
    try:
        server = find_server(options.server)
    except ServerNotFoundError as error:
        text, _, cure = str(error).partition("; ")
        return [Finding("server", "problem", text, cure)]
    if not server.supported:
        return [Finding("server", "problem", f"{server} at {server.path}", "Redis 6.2 or Valkey 7.2 is the oldest the module loads into")]
    findings = [Finding("server", "ok", f"{server} at {server.path}")]
    if lacking := server.lacks():
        findings.append(Finding("server", "note", f"{server} is without: {'; '.join(lacking)}", "all else works; a newer server has these"))
    return findings


def check_unit(options: Options) -> list[Finding]:
    unit = systemd.find_unit()
    if unit is None:
        return []
    if found := systemd.obstacles(unit):
        cure = f"sudo mkdir -p {unit.dropin.parent} && redisai doctor --systemd | sudo tee {unit.dropin}"
        return [Finding("service", "note", f"{unit.path.name} keeps the module out: {'; '.join(obstacle.why for obstacle in found)}", cure)]
    return [Finding("service", "ok", f"{unit.path.name} lets the module load")]


def check_machine(options: Options) -> list[Finding]:
    return [finding for check in machine.CHECKS for finding in check(Path("/"))]


def check_gpus(options: Options) -> list[Finding]:
    return machine.gpus(Path("/"), BACKEND_PACKAGES)


def check_start(options: Options) -> list[Finding]:
    if not options.start:
        return []
    from .trial import trial

    try:
        module_path()
        server = find_server(options.server)
    except (FileNotFoundError, ServerNotFoundError):
        return [Finding("start", "problem", "there is nothing to start: see above")]
    return list(trial(server))


CHECKS: tuple[Callable[[Options], list[Finding]], ...] = (
    check_python,
    check_libpython,
    check_module,
    check_numpy,
    check_backends,
    check_server,
    check_unit,
    check_machine,
    check_gpus,
    check_start,
)


def examine(options: Options) -> list[Finding]:
    return [finding for check in CHECKS for finding in run_check(check, options)]


def run_check(check: Callable[[Options], list[Finding]], options: Options) -> list[Finding]:
    try:
        return check(options)
    except Exception as error:
        return [Finding(check.__name__.removeprefix("check_"), "problem", f"the check itself failed: {error!r}")]


# ---- health of a running server ----------------------------------------------------------------------------------------------------


def health(where: dict[str, Any]) -> Finding:
    """Answers, has finished loading its data, and has the module: what a container's health check asks."""
    target = address(**where)
    try:
        connection = target.connect(timeout=HEALTH_SECONDS)
        reply = connection.call("PING")
        modules = connection.call("MODULE", "LIST")
        connection.close()
    except (OSError, RefusedError) as error:
        return Finding("server", "problem", f"{target}: {error}")
    if reply != Status(b"PONG"):
        return Finding("server", "problem", f"{target}: {reply.text.decode() if isinstance(reply, Failure) else reply}")
    if isinstance(modules, list) and b"ai" not in {module[module.index(b"name") + 1] for module in modules}:
        return Finding("server", "problem", f"{target}: the module is not loaded", "loadmodule " + systemd.module_or_placeholder())
    return Finding("server", "ok", f"{target} answers")


# ---- the command -------------------------------------------------------------------------------------------------------------------

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def show(findings: list[Finding], as_json: bool) -> int:
    ok = all(finding.status != "problem" for finding in findings)
    if as_json:
        write_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    elif sys.stdout.isatty():
        console().print(as_table(findings))
    else:
        write("".join(map(as_line, findings)).encode())
    return 0 if ok else 1


def as_line(finding: Finding) -> str:
    cure = f"\n         {' ' * 10}{finding.cure}" if finding.cure else ""
    return f"{finding.status:8} {finding.subject:10}{finding.found}{cure}\n"


def as_table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(f"[{STYLES[finding.status]}]{finding.status}[/]", finding.subject, escape(finding.found))
        if finding.cure:
            table.add_row("", "", f"[dim]{escape(finding.cure)}[/]")
    return table


def escape(text: str) -> str:
    """Rich reads [extra] as markup."""
    return text.replace("[", "\\[")


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.option("--import", "imports", is_flag=True, help="Import every backend that is installed (takes seconds).")
@click.option("--start", is_flag=True, help="Load the module and every backend into a server of its own (takes seconds).")
@click.option("--redis-server", "server", metavar="PATH", help="Server to look at.  [default: the one `serve` would start]")
@click.option("--systemd", "print_dropin", is_flag=True, help="Print the drop-in that Debian's redis-server service needs.")
@click.option("--health", "only_health", is_flag=True, help="Ask a running server for its health; for container health checks.")
@address_options
def command(as_json: bool, imports: bool, start: bool, server: str | None, print_dropin: bool, only_health: bool, **where: Any) -> int:
    """Check this installation and say how to mend it. Ends with 1 when there is a problem.

    \b
    redisai doctor
    redisai doctor --start
    redisai doctor --health -p 7000
    redisai doctor --systemd | sudo tee /etc/systemd/system/redis-server.service.d/redisai.conf
    """
    if print_dropin:
        write(systemd.dropin(systemd.unit_alone()).encode())
        return 0
    if only_health:
        return show([health(where)], as_json)
    return show(examine(Options(server, imports, start)), as_json)
