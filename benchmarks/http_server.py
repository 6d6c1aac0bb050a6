"""The usual way to serve the fraud model, to compare with: an HTTP server in Python with ONNX Runtime inside, which gets the reference row
from Redis for each request.

As quick as that way allows: a bare ASGI application without a framework, uvloop and httptools, one connection pool with hiredis, the
session on one thread, raw bytes in and out. One process, like the server it is compared with.

    POST /<reference>  with 30 floats  ->  2 floats
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .rows import MODELS, ROOT

if TYPE_CHECKING:
    from servers import Server

PORT_OF_REDIS = "BENCHMARK_REDIS_PORT"


@dataclass(frozen=True)
class Running:
    pid: int
    port: int
    redis: Server


@contextmanager
def running(redis: Server) -> Iterator[Running]:
    """An HTTP server beside `redis`, ended on leaving."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--factory", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "benchmarks.http_server:application", *options],
        cwd=ROOT,
        env={**os.environ, PORT_OF_REDIS: str(redis.port)},
    )
    try:
        _wait(port, process)
        yield Running(process.pid, port, redis)
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("the HTTP server to compare with did not start")


def application() -> Callable[..., Awaitable[None]]:
    """The ASGI application; uvicorn calls this once."""
    import numpy as np
    import onnxruntime
    import redis.asyncio

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODELS / "fraud.onnx"), options, providers=["CPUExecutionProvider"])
    transaction_name, reference_name = (value.name for value in session.get_inputs())
    pool = redis.asyncio.BlockingConnectionPool(port=int(os.environ[PORT_OF_REDIS]), max_connections=32, timeout=None)
    store = redis.asyncio.Redis(connection_pool=pool)

    async def body_of(receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
        parts = []
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    async def serve(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[..., Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        transaction = np.frombuffer(await body_of(receive), np.float32).reshape(1, 30)
        reference = np.frombuffer(await store.get("string:" + scope["path"][1:]), np.float32).reshape(1, 256)
        (score,) = session.run(None, {transaction_name: transaction, reference_name: reference})
        blob = score.tobytes()
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(blob))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": blob})

    return serve
