"""Parameters in the forms that a server offers, beside load arguments: redis.conf, CONFIG GET, SET and REWRITE, MODULE LOADEX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import echo_model
from servers import Server, module_path, server_binaries

BINARIES = {name: path for name, path in server_binaries().items() if name != "redis-6.2"}
OLD = server_binaries().get("redis-6.2")

MEBIBYTE = 1024 * 1024
DEFAULTS = {
    "ai.threads-per-queue": "1",
    "ai.intra-op-parallelism": "0",
    "ai.inter-op-parallelism": "0",
    "ai.model-chunk-size": str(511 * MEBIBYTE),
    "ai.model-execution-timeout": "5000",
    "ai.backend-memory-limit": "0",
    "ai.max-queue": "65536",
    "ai.max-tensor-bytes": str(512 * MEBIBYTE),
    "ai.max-model-bytes": "0",
    "ai.max-script-bytes": str(MEBIBYTE),
    "ai.allow-file-ops": "no",
    "ai.flows": "no",
    "ai.flows-timeout": "30000",
    "ai.isolation": "none",
    "ai.sandbox": "no",
    "ai.load-backends": "none",
    "ai.python": "",
    "ai.backends-path": str(module_path().parent / "backends"),
}
IMMUTABLE = {
    *("ai.threads-per-queue", "ai.intra-op-parallelism", "ai.inter-op-parallelism", "ai.backend-memory-limit"),
    *("ai.allow-file-ops", "ai.flows", "ai.flows-timeout", "ai.isolation", "ai.sandbox", "ai.load-backends", "ai.python"),
}
ARGUMENTS = ("THREADS_PER_QUEUE", "2", "MAX_QUEUE", "77", "MAX_TENSOR_BYTES", "1000000", "MODEL_EXECUTION_TIMEOUT", "2000")


@pytest.fixture(params=BINARIES, ids=str)
def start(request: pytest.FixtureRequest, start_server: Callable[..., Server]) -> Callable[..., Server]:
    """Starts one of the servers that let a module have parameters."""

    def started(*args: str, **options: Any) -> Server:
        return start_server(*args, binary=BINARIES[request.param], **options)

    return started


@pytest.fixture
def c(start: Callable[..., Server]) -> Iterator[redis.Redis]:
    """A client of a server on its defaults."""
    with start().client(decode_responses=True) as client:
        yield client


def parameters(server: Server, pattern: str = "ai.*") -> dict[str, str]:
    with server.client(decode_responses=True) as client:
        found: dict[str, str] = client.config_get(pattern)
        return found


def written(directory: Path) -> str:
    return (directory / "redis.conf").read_text()


def from_file(start: Callable[..., Server], directory: Path, text: str, **options: Any) -> Server:
    """A server that reads redis.conf from `directory`; what this project's tests always set comes after it."""
    (directory / "redis.conf").write_text(text)
    server: Server = start(load_module=False, directory=directory, conf=directory / "redis.conf", **options)
    return server


# ---- CONFIG GET and SET --------------------------------------------------------------------------------------------------


def test_every_parameter_is_there_with_its_default(c: redis.Redis) -> None:
    assert c.config_get("ai.*") == DEFAULTS


def test_what_is_fixed_after_the_start_says_so(c: redis.Redis) -> None:
    for name, value in c.config_get("ai.*").items():
        if name in IMMUTABLE:
            with pytest.raises(redis.ResponseError, match="immutable"):
                c.config_set(name, value or "x")
        else:
            assert c.config_set(name, value)
    assert c.config_get("ai.*") == DEFAULTS


def test_values_are_checked(c: redis.Redis) -> None:
    for name, value in (
        ("ai.max-queue", "-1"),
        ("ai.max-queue", "many"),
        ("ai.model-chunk-size", "0"),
        ("ai.model-execution-timeout", "999"),
        ("ai.max-tensor-bytes", "1 mb"),
    ):
        with pytest.raises(redis.ResponseError):
            c.config_set(name, value)
    assert c.config_get("ai.*") == DEFAULTS


def test_a_parameter_is_in_force_at_once(c: redis.Redis) -> None:
    c.config_set("ai.max-tensor-bytes", "1kb")
    with pytest.raises(redis.ResponseError, match="MAX_TENSOR_BYTES"):
        c.execute_command("AI.TENSORSET", "t", "UINT8", 2000)
    c.config_set("ai.max-tensor-bytes", 0)
    assert c.execute_command("AI.TENSORSET", "t", "UINT8", 2000) == "OK"
    c.config_set("ai.max-model-bytes", 10)
    with pytest.raises(redis.ResponseError, match="MAX_MODEL_BYTES"):
        c.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model())
    c.config_set("ai.max-model-bytes", 0)
    assert c.execute_command("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model()) == "OK"
    c.config_set("ai.model-chunk-size", 10)
    assert len(c.execute_command("AI.MODELGET", "m", "BLOB")) == len(echo_model()) // 10 + 1
    c.config_set("ai.max-script-bytes", 3)
    with pytest.raises(redis.ResponseError, match="MAX_SCRIPT_BYTES"):
        c.execute_command("AI.SCRIPTSET", "s", "CPU", "SOURCE", "long")


def test_both_commands_show_the_same(c: redis.Redis) -> None:
    assert c.execute_command("AI.CONFIG", "MODEL_CHUNK_SIZE", 1000) == "OK"
    assert c.execute_command("AI.CONFIG", "BACKENDSPATH", "/a path") == "OK"
    assert c.config_get("ai.model-chunk-size", "ai.backends-path") == {"ai.model-chunk-size": "1000", "ai.backends-path": "/a path"}
    c.config_set("ai.model-chunk-size", "2kb")
    c.config_set("ai.backends-path", "/another")
    c.config_set("ai.max-queue", 5)
    c.config_set("ai.max-model-bytes", "1gb")
    assert c.execute_command("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE") == 2048
    assert c.execute_command("AI.CONFIG", "GET", "BACKENDSPATH") == "/another"
    assert c.execute_command("AI.CONFIG", "GET", "MAX_QUEUE") == 5
    assert c.execute_command("AI.CONFIG", "GET", "MAX_MODEL_BYTES") == 1 << 30


# ---- where a value may come from ---------------------------------------------------------------------------------------


def test_load_arguments_are_shown_and_not_overridden_by_defaults(start: Callable[..., Server]) -> None:
    server = start(module_args=ARGUMENTS)
    given = {"ai.threads-per-queue": "2", "ai.max-queue": "77", "ai.max-tensor-bytes": "1000000", "ai.model-execution-timeout": "2000"}
    assert parameters(server) == DEFAULTS | given
    assert server.client().info("ai_load_time_configs")["ai_threads_per_queue"] == 2


def test_a_value_of_the_configuration_wins_over_a_load_argument(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start("--ai.threads-per-queue", "3", "--ai.max-tensor-bytes", "2mb", "--ai.allow-file-ops", "yes", module_args=ARGUMENTS)
    given = {"ai.threads-per-queue": "3", "ai.max-tensor-bytes": "2097152", "ai.allow-file-ops": "yes"}
    assert parameters(server) == DEFAULTS | {"ai.max-queue": "77", "ai.model-execution-timeout": "2000"} | given
    assert server.client().info("ai_load_time_configs")["ai_threads_per_queue"] == 3


@pytest.mark.parametrize("wrong", [("--ai.threads-per-queue", "0"), ("--ai.load-backends", "caffe"), ("--ai.unknown", "1")], ids=str)
def test_a_value_that_is_refused_ends_the_start(start: Callable[..., Server], wrong: tuple[str, str]) -> None:
    with pytest.raises(AssertionError, match="the server ended with 1"):
        start(*wrong)


def test_backends_named_in_the_configuration_are_loaded_at_the_start(start: Callable[..., Server]) -> None:
    server = start("--ai.load-backends", "torch onnx")
    assert set(parameters(server)["ai.load-backends"].split()) == {"torch", "onnx"}
    assert set(server.client().info("ai_backends_info")) >= {"ai_Torch_version", "ai_onnxruntime_version"}
    assert "ai_TensorFlow_version" not in server.client().info("ai_backends_info")


def test_the_module_can_be_loaded_with_parameters_into_a_running_server(start: Callable[..., Server]) -> None:
    server = start("--enable-module-command", "yes", load_module=False, env={"REDISAI_TEST_BACKEND": "echo"})
    with server.client(decode_responses=True) as c:
        path = str(module_path())
        # Not an unknown name: servers then load the module, and unload it again, which ends Valkey 9.1 (any module with data types).
        for wrong in (["CONFIG", "ai.max-queue", "no"], ["ARGS", "MAX_QUEUE", "no"]):
            with pytest.raises(redis.ResponseError):
                c.execute_command("MODULE", "LOADEX", path, *wrong)
            assert c.config_get("ai.*") == {}
        words = ["CONFIG", "ai.max-queue", "5", "CONFIG", "ai.python", "", "ARGS", "MAX_QUEUE", "6", "MAX_SCRIPT_BYTES 7"]
        assert c.execute_command("MODULE", "LOADEX", path, *words) == "OK"
        assert c.config_get("ai.*") == DEFAULTS | {"ai.max-queue": "5", "ai.max-script-bytes": "7"}
        assert c.execute_command("AI.TENSORSET", "t", "INT8", 1) == "OK"


# ---- CONFIG REWRITE -------------------------------------------------------------------------------------------------------


def test_config_rewrite_keeps_what_was_changed(start: Callable[..., Server], tmp_path: Path) -> None:
    text = f'enable-debug-command yes\nloadmodule "{module_path()}" MAX_QUEUE 77 THREADS_PER_QUEUE 2\nai.max-script-bytes 2mb\n'
    server = from_file(start, tmp_path, text)
    assert parameters(server) == DEFAULTS | {"ai.max-queue": "77", "ai.threads-per-queue": "2", "ai.max-script-bytes": str(2 * MEBIBYTE)}
    with server.client() as c:
        c.config_set("ai.max-tensor-bytes", "3mb")
        c.config_set("ai.backends-path", "/a path")
        c.config_rewrite()
    assert "MAX_QUEUE 77" in written(tmp_path), "load arguments stay on their line"
    assert "ai.max-queue" not in written(tmp_path)
    server.restart()
    changed = {"ai.max-tensor-bytes": str(3 * MEBIBYTE), "ai.backends-path": "/a path"}
    as_before = {"ai.max-queue": "77", "ai.threads-per-queue": "2", "ai.max-script-bytes": str(2 * MEBIBYTE)}
    assert parameters(server) == DEFAULTS | as_before | changed
    with server.client() as c:
        c.config_set("ai.max-queue", 5)
        c.config_rewrite()
    server.restart()
    assert parameters(server, "ai.max-queue") == {"ai.max-queue": "5"}


# ---- Redis 6.2 -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(OLD is None, reason="Redis 6.2 is not here")
def test_load_arguments_are_all_there_is_on_6_2(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=ARGUMENTS, binary=OLD)
    with server.client() as c:
        assert c.config_get("ai.*") == {}
        assert c.execute_command("AI.CONFIG", "GET", "MAX_QUEUE") == 77
