"""Fixtures that every tier shares: servers with the module, and what must hold after each test that used one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from servers import Server, default_binary, server_binaries

#: RLTest's, not pytest's: run by tests/server/test_flow_modes.py
collect_ignore = ["flow"]


def pytest_report_header() -> list[str]:
    try:
        return [f"server: {default_binary()}"]
    except AssertionError as error:
        return [f"server: none ({error})"]


@pytest.fixture(scope="module")
def _shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(_shared_server: Server) -> Iterator[Server]:
    """A server with the echo backend, shared by the tests of a file; its keyspace is empty at the start of each test."""
    yield from _emptied(_shared_server)


@pytest.fixture(scope="session")
def _shared_real_server() -> Iterator[Server]:
    server = Server(echo=False)
    yield server
    server.close()


@pytest.fixture
def real_server(_shared_real_server: Server) -> Iterator[Server]:
    """A server with the real backends, shared by the whole run."""
    yield from _emptied(_shared_real_server)


@pytest.fixture(scope="session")
def _shared_flow_server() -> Iterator[Server]:
    server = Server(module_args=("FLOWS", "yes"), echo=False)
    yield server
    server.close()


@pytest.fixture
def flow_server(_shared_flow_server: Server) -> Iterator[Server]:
    """A server with the real backends that runs AI flows, shared by the whole run; no flow is registered at the start of a test."""
    yield from _emptied(_shared_flow_server)
    with _shared_flow_server.client() as client:
        for row in client.execute_command("RG.DUMPREGISTRATIONS"):
            client.execute_command("RG.UNREGISTER", row[1])


def _emptied(server: Server) -> Iterator[Server]:
    with server.client() as client:
        client.flushall()
    pid = server.pid
    yield server
    assert server.alive(), f"the server died; its log ends:\n{server.log()[-6000:]}"
    assert server.pid == pid


@pytest.fixture(scope="session", params=server_binaries(), ids=str)
def _shared_every_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(binary=server_binaries()[request.param])
    yield server
    server.close()


@pytest.fixture
def every_server(_shared_every_server: Server) -> Iterator[Server]:
    """Each server that is installed in turn, with the echo backend, shared by the whole run; a test puts back what it configures."""
    yield from _emptied(_shared_every_server)


@pytest.fixture(scope="session", params=server_binaries(), ids=str)
def every_flows_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each server that is installed in turn, with FLOWS yes, shared by the whole run; a test takes its flows away again."""
    server = Server("--repl-diskless-sync-delay", "0", binary=server_binaries()[request.param], module_args=["FLOWS", "yes"])
    yield server
    server.close()


@pytest.fixture
def r(server: Server) -> Iterator[redis.Redis]:
    """A client of `server`, replies as bytes."""
    with server.client() as client:
        yield client


@pytest.fixture
def real(real_server: Server) -> Iterator[redis.Redis]:
    """A client of `real_server`."""
    with real_server.client() as client:
        yield client


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own; ends them with it."""
    started: list[Server] = []

    def start(*args: str, **options: Any) -> Server:
        server = Server(*args, **options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


def echo_model(op: str = "echo", inputs: int = 1, outputs: int = 1, **options: Any) -> str:
    """The blob of a model of the echo backend."""
    return json.dumps({"op": op, "inputs": inputs, "outputs": outputs, **options})
