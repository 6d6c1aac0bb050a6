"""Load arguments, AI.CONFIG, AI.INFO and the sections of INFO."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rdb_payload as rdb
import redis
from servers import Server, default_binary, module_path, running, wait_until

ALLOW_MODULE_COMMAND = [] if "redis-6.2" in str(default_binary()) else ["--enable-module-command", "yes"]
CHUNK = 511 * 1024 * 1024


# ---- load arguments ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare() -> Iterator[Server]:
    """A server without the module, into which it can be loaded."""
    with running(*ALLOW_MODULE_COMMAND, load_module=False) as server:
        yield server


@pytest.fixture
def refused(bare: Server) -> Callable[..., str]:
    """Loads the module with arguments that it must refuse, which leaves nothing of it; returns what the server logged."""

    def load(*module_args: str) -> str:
        already = len(bare.log())
        with bare.client() as r:
            with pytest.raises(redis.ResponseError):
                r.execute_command("MODULE", "LOAD", str(module_path()), *module_args)
            assert "'ai'" not in str(r.execute_command("MODULE", "LIST"))
            with pytest.raises(redis.ResponseError, match="unknown command"):
                r.execute_command("AI.TENSORSET", "t", "INT8", 1)
        return bare.log()[already:]

    return load


def test_every_argument_is_taken_and_logged(start_server: Callable[..., Server]) -> None:
    given = {
        "threads_per_queue": "2",
        "INTRA_OP_PARALLELISM": "1",
        "Inter_Op_Parallelism": "3",
        "MODEL_CHUNK_SIZE": "1000",
        "MODEL_EXECUTION_TIMEOUT": "1000",
        "BACKEND_MEMORY_LIMIT": "100",
        "MAX_QUEUE": "77",
        "MAX_TENSOR_BYTES": "1000000",
        "MAX_MODEL_BYTES": "2000000",
        "MAX_SCRIPT_BYTES": "3000000",
        "ALLOW_FILE_OPS": "no",
    }
    server = start_server(module_args=[word for pair in given.items() for word in pair])
    log = server.log()
    for name, value in given.items():
        assert f"Setting {name.upper()} parameter to: {value}" in log
    info = server.client().info("ai_load_time_configs")
    assert info == {
        "ai_threads_per_queue": 2,
        "ai_inter_op_parallelism": 3,
        "ai_intra_op_parallelism": 1,
        "ai_model_execution_timeout": 1000,
        "ai_backend_memory_limit": 100,
    }
    for name, value in (("MODEL_CHUNK_SIZE", 1000), ("MAX_QUEUE", 77), ("max_tensor_bytes", 1000000), ("MAX_MODEL_BYTES", 2000000)):
        assert server.client().execute_command("AI.CONFIG", "GET", name) == value


def test_defaults(r: Any) -> None:
    assert r.info("ai_load_time_configs") == {
        "ai_threads_per_queue": 1,
        "ai_inter_op_parallelism": 0,
        "ai_intra_op_parallelism": 0,
        "ai_model_execution_timeout": 5000,
        "ai_backend_memory_limit": 0,
    }
    assert r.execute_command("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE") == CHUNK


def test_zero_is_the_default_where_a_default_exists(start_server: Callable[..., Server]) -> None:
    server = start_server(
        module_args=("INTRA_OP_PARALLELISM", "0", "INTER_OP_PARALLELISM", "0", "BACKEND_MEMORY_LIMIT", "0", "MAX_MODEL_BYTES", "0")
    )
    assert server.client().info("ai_load_time_configs")["ai_intra_op_parallelism"] == 0
    assert server.client().execute_command("AI.CONFIG", "GET", "MAX_MODEL_BYTES") == 0
    server.client().restore("m", 0, rdb.model("TF", b"x", inputs=("a",), outputs=("b",)))


def test_a_name_and_its_value_may_be_one_argument(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=("THREADS_PER_QUEUE 2", "INTRA_OP_PARALLELISM", "3", "INTER_OP_PARALLELISM  4"))
    info = server.client().info("ai_load_time_configs")
    assert (info["ai_threads_per_queue"], info["ai_intra_op_parallelism"], info["ai_inter_op_parallelism"]) == (2, 3, 4)


def test_the_last_of_a_repeated_argument_counts(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=("THREADS_PER_QUEUE", "2", "THREADS_PER_QUEUE", "3"))
    assert server.client().info("ai_load_time_configs")["ai_threads_per_queue"] == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THREADS_PER_QUEUE", "0"),
        ("THREADS_PER_QUEUE", "-1"),
        ("THREADS_PER_QUEUE", "one"),
        ("THREADS_PER_QUEUE", "1.0"),
        ("INTRA_OP_PARALLELISM", "-1"),
        ("INTER_OP_PARALLELISM", "x"),
        ("MODEL_CHUNK_SIZE", "0"),
        ("MODEL_EXECUTION_TIMEOUT", "999"),
        ("BACKEND_MEMORY_LIMIT", "-1"),
        ("MAX_QUEUE", "many"),
        ("ALLOW_FILE_OPS", "perhaps"),
        ("NO_SUCH_THING", "1"),
        ("TORCH", "/lib/evil.so"),
        ("TORCH", "redisai_tensorflow.so"),
    ],
)
def test_a_bad_argument_is_refused_in_known_words(refused: Callable[..., str], name: str, value: str) -> None:
    assert f"ERR error processing argument: {name} {value}\n" in refused(name, value)


def test_a_backend_named_twice_is_refused(refused: Callable[..., str]) -> None:
    words = ("TORCH", "redisai_torch/redisai_torch.so")
    assert "ERR error processing argument: TORCH redisai_torch/redisai_torch.so" in refused(*words, *words)


def test_an_argument_without_a_value_is_refused(refused: Callable[..., str]) -> None:
    line = "Even number of arguments provided to module. Please provide arguments as KEY VAL pairs"
    assert line in refused("THREADS_PER_QUEUE", "2", "INTRA_OP_PARALLELISM")


def test_the_path_of_backends_counts_wherever_it_stands(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=("THREADS_PER_QUEUE", "1", "BACKENDSPATH", "/some/where"))
    assert server.client().execute_command("AI.CONFIG", "GET", "BACKENDSPATH") == b"/some/where"
    assert "BACKENDSPATH" not in server.log()


def test_a_backend_named_at_load_time_is_loaded_before_the_server_answers(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=("TORCH", "redisai_torch/redisai_torch.so"))
    assert "ai_Torch_version" in server.client().info("ai_backends_info")
    assert re.search(r"TORCH backend loaded from /.*/backends/redisai_torch/redisai_torch.so", server.log())


# ---- AI.CONFIG ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", "wrong number of arguments for 'ai.config' command"),
        ("GET", "wrong number of arguments for 'ai.config' command"),
        ("LOADBACKEND", "wrong number of arguments for 'ai.config' command"),
        ("LOADBACKEND TF", "wrong number of arguments for 'ai.config' command"),
        ("LOADBACKEND PYTORCH redisai_torch.so", "unsupported backend"),
        ("LOADBACKEND TF no/such/file.so", "error loading backend"),
        ("LOADBACKEND TF /tmp/redisai_torch.so", "error loading backend"),
        ("LOADBACKEND TF redisai_tensorflow.so.so", "error loading backend"),
        ("loadbackend tf /", "error loading backend"),
        ("BACKENDSPATH", "BACKENDSPATH: missing path argument"),
        ("MODEL_CHUNK_SIZE", "MODEL_CHUNK_SIZE: missing chunk size"),
        ("MODEL_CHUNK_SIZE 0", "MODEL_CHUNK_SIZE: invalid chunk size"),
        ("MODEL_CHUNK_SIZE -1", "MODEL_CHUNK_SIZE: invalid chunk size"),
        ("MODEL_CHUNK_SIZE 1.5", "MODEL_CHUNK_SIZE: invalid chunk size"),
        ("MODEL_CHUNK_SIZE 9223372036854775808", "MODEL_CHUNK_SIZE: invalid chunk size"),
        ("NOTHING", "unsupported subcommand"),
        ("SET a b", "unsupported subcommand"),
    ],
)
def test_config_errors(r: Any, words: str, text: str) -> None:
    with pytest.raises(redis.ResponseError) as failure:
        r.execute_command("AI.CONFIG", *words.split())
    assert str(failure.value).replace("AI.CONFIG", "ai.config") == text  # 6.2 names the command as it was typed


def test_config_sets_and_gets(r: Any) -> None:
    def config(*words: Any) -> Any:
        return r.execute_command("AI.CONFIG", *words)

    assert config("model_chunk_size", 30) == b"OK"
    assert config("GET", "Model_Chunk_Size") == 30
    assert config("MODEL_CHUNK_SIZE", 2**63 - 1, "ignored") == b"OK"
    assert config("GET", "MODEL_CHUNK_SIZE") == 2**63 - 1
    assert config("BACKENDSPATH", "/a b", "ignored") == b"OK"
    assert config("get", "backendspath", "ignored") == b"/a b"
    for name in ("THREADS_PER_QUEUE", "nothing", "", "TORCH"):
        assert config("GET", name) is None


def test_the_default_path_of_backends_is_beside_the_module(start_server: Callable[..., Server]) -> None:
    path = start_server().client().execute_command("AI.CONFIG", "GET", "BACKENDSPATH").decode()
    assert path.startswith("/") and path.endswith("/backends")


def test_config_is_not_replicated(start_server: Callable[..., Server]) -> None:
    server = start_server("--appendonly", "yes")
    before = server.client().info("persistence")["aof_current_size"]
    server.client().execute_command("AI.CONFIG", "MODEL_CHUNK_SIZE", 7)
    assert server.client().info("persistence")["aof_current_size"] == before


@pytest.mark.parametrize("path", ["redisai_onnxruntime/redisai_onnxruntime.so", "/usr/lib/redisai_onnxruntime.so", "redisai_onnxruntime/"])
def test_a_backend_is_loaded_by_its_usual_name_and_once(start_server: Callable[..., Server], path: str) -> None:
    r = start_server().client()
    assert r.info("ai_backends_info") == {}
    assert r.execute_command("AI.CONFIG", "LOADBACKEND", "onnx", path) == b"OK"
    assert set(r.info("ai_backends_info")) == {
        "ai_onnxruntime_version",
        "ai_onnxruntime_memory",
        "ai_onnxruntime_memory_access_num",
        "ai_onnxruntime_maximum_run_sessions_number",
    }
    with pytest.raises(redis.ResponseError, match=r"^error loading backend$"):
        r.execute_command("AI.CONFIG", "LOADBACKEND", "ONNX", path)


def test_a_backend_can_be_asked_for_where_nobody_may_wait(start_server: Callable[..., Server]) -> None:
    r = start_server().client()
    with r.pipeline(transaction=True) as pipe:
        pipe.execute_command("AI.CONFIG", "LOADBACKEND", "ONNX", "redisai_onnxruntime.so")
        assert pipe.execute() == [b"OK"]
    wait_until(lambda: r.info("ai_backends_info"), "the backend")


FAULT = {"REDISAI_TEST_BACKEND": "fault"}  # backends whose library is not installed


def test_a_backend_that_is_not_installed_is_an_error(start_server: Callable[..., Server]) -> None:
    r = start_server(env=FAULT).client()
    with pytest.raises(redis.ResponseError, match=r"^error loading backend$"):
        r.execute_command("AI.CONFIG", "LOADBACKEND", "TORCH", "redisai_torch.so")
    assert r.info("ai_backends_info") == {}


def test_a_backend_named_at_load_time_that_is_not_installed_ends_the_start(start_server: Callable[..., Server]) -> None:
    with pytest.raises(AssertionError, match="TORCH"):
        start_server(module_args=("TORCH", "redisai_torch.so"), env=FAULT)


def test_a_load_that_fails_late_leaves_the_server_running(start_server: Callable[..., Server]) -> None:
    """By then there are threads, which nobody can end. What was subscribed to must be gone, too: hence the RENAME and the FLUSHALL."""
    server = start_server(*ALLOW_MODULE_COMMAND, load_module=False, env=FAULT)
    r = server.client()
    for _ in range(2):
        with pytest.raises(redis.ResponseError):
            r.execute_command("MODULE", "LOAD", str(module_path()), "TORCH", "redisai_torch.so")
        r.set("a", 1)
        r.rename("a", "b")
        r.flushall()
        r.info("everything")
    assert "Could not load TORCH backend" in server.log()
    assert "an earlier load failed after Python had started: the server has to be restarted" in server.log()


def test_a_load_that_is_refused_can_be_tried_again(start_server: Callable[..., Server]) -> None:
    r = start_server(*ALLOW_MODULE_COMMAND, load_module=False, env={"REDISAI_TEST_BACKEND": "echo"}).client()
    for wrong in (("TORCH", "redisai_torch.so", "MAX_QUEUE", "none"), ("THREADS_PER_QUEUE", "3", "odd")):
        with pytest.raises(redis.ResponseError):
            r.execute_command("MODULE", "LOAD", str(module_path()), *wrong)
    assert r.execute_command("MODULE", "LOAD", str(module_path()), "TORCH", "redisai_torch.so") == b"OK"
    assert r.info("ai_load_time_configs")["ai_threads_per_queue"] == 1
    assert "ai_Torch_version" in r.info("ai_backends_info")


# ---- AI.INFO -----------------------------------------------------------------------------------------------------------------------


def test_info_of_a_model_and_of_a_script(r: Any) -> None:
    r.restore("m", 0, rdb.model("TF", b"x", device="cpu:1", tag="v1", inputs=("a",), outputs=("b",)))
    r.restore("s", 0, rdb.script("def f(a):\n    return a\n"))
    zeros = [b"duration", 0, b"samples", 0, b"calls", 0, b"errors", 0]
    head = [b"key", b"m", b"type", b"MODEL", b"backend", b"TF", b"device", b"cpu:1", b"tag", b"v1"]
    assert r.execute_command("AI.INFO", "m") == head + zeros
    head = [b"key", b"s", b"type", b"SCRIPT", b"backend", b"TORCH", b"device", b"CPU", b"tag", b""]
    zeros[3] = -1
    assert r.execute_command("AI.INFO", "s") == head + zeros
    assert r.execute_command("AI.INFO", "s", "ignored") == head + zeros
    assert r.execute_command("ai.info", "s", "resetstat") == b"OK"


def test_info_follows_the_value_and_the_selected_database(r: Any) -> None:
    r.restore("m", 0, rdb.model("TF", b"x", inputs=("a",), outputs=("b",)))
    r.rename("m", "n")
    assert r.execute_command("AI.INFO", "n")[1] == b"n"
    r.select(1)
    with pytest.raises(redis.ResponseError, match="cannot find run info for key"):
        r.execute_command("AI.INFO", "n")
    r.select(0)


@pytest.mark.parametrize("words", [("missing",), ("string",), ("tensor",)])
def test_info_of_anything_else_is_an_error(r: Any, words: tuple[str, ...]) -> None:
    r.set("string", "x")
    r.execute_command("AI.TENSORSET", "tensor", "INT8", 1)
    with pytest.raises(redis.ResponseError, match=r"^cannot find run info for key$"):
        r.execute_command("AI.INFO", *words)


@pytest.mark.parametrize("words", [(), ("m", "RESETSTAT", "more")])
def test_info_counts_its_arguments(r: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(redis.ResponseError, match=r"wrong number of arguments for '(ai\.info|AI\.INFO)' command"):
        r.execute_command("AI.INFO", *words)


def test_info_counts_runs_of_a_model(r: Any) -> None:
    for key, op in (("good", {"op": "echo"}), ("bad", {"op": "raise", "text": "no"})):
        r.execute_command("AI.MODELSTORE", key, "ONNX", "CPU", "BLOB", json.dumps(op))
    r.execute_command("AI.TENSORSET", "t", "INT8", 5, 2)
    for _ in range(3):
        r.execute_command("AI.MODELEXECUTE", "good", "INPUTS", 1, "t", "OUTPUTS", 1, "out")
    with pytest.raises(redis.ResponseError):
        r.execute_command("AI.MODELEXECUTE", "bad", "INPUTS", 1, "t", "OUTPUTS", 1, "out")
    good, bad = (r.execute_command("AI.INFO", key)[10:] for key in ("good", "bad"))
    assert good[0::2] == [b"duration", b"samples", b"calls", b"errors"]
    assert good[1] > 0 and good[3::2] == [15, 3, 0]
    assert bad[1::2] == [0, 0, 1, 1]
    with pytest.raises(redis.ResponseError):
        r.execute_command("AI.MODELEXECUTE", "good", "INPUTS", 1, "missing", "OUTPUTS", 1, "out")
    assert r.execute_command("AI.INFO", "good")[15] == 3, "a command that is refused is no call"
    r.copy("good", "copy")
    assert r.execute_command("AI.INFO", "copy")[15] == 0
    r.rename("good", "renamed")
    assert r.execute_command("AI.INFO", "renamed")[15] == 3
    assert r.execute_command("AI.INFO", "renamed", "RESETSTAT") == b"OK"
    assert r.execute_command("AI.INFO", "renamed")[11::2] == [0, 0, 0, 0]


def test_info_stats_tells_how_requests_were_batched(r: Any, tmp_path: Path) -> None:
    """Four requests wait while a fifth holds the only worker, and then run as one batch."""
    gate = tmp_path / "gate"
    r.execute_command("AI.MODELSTORE", "gate", "ONNX", "CPU", "BLOB", json.dumps({"op": "gate", "path": str(gate)}))
    r.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BATCHSIZE", 100, "BLOB", json.dumps({"op": "echo"}))
    r.execute_command("AI.TENSORSET", "t", "INT8", 3, 2)
    with ThreadPoolExecutor(5) as pool:
        held = pool.submit(r.execute_command, "AI.MODELEXECUTE", "gate", "INPUTS", 1, "t", "OUTPUTS", 1, "held")
        wait_until(lambda: r.info("ai_runtime")["ai_jobs_in_flight"] == 1 and r.info("ai_queues")["ai_queue_CPU_length"] == 0)
        words = ("AI.MODELEXECUTE", "m", "INPUTS", 1, "t", "OUTPUTS", 1)
        waiting = [pool.submit(r.execute_command, *words, f"out{i}") for i in range(4)]
        wait_until(lambda: r.info("ai_queues")["ai_queue_CPU_length"] == 4)
        gate.touch()
        assert [w.result(60) for w in [held, *waiting]] == [b"OK"] * 5
    reply = r.execute_command("AI.INFO", "m", "STATS")
    got = {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}
    assert got.pop("wait_us") > 0
    assert got == {"key": b"m", "batches": 1, "batched_requests": 4, "batch_sizes": [4, 1]}


# ---- INFO --------------------------------------------------------------------------------------------------------------------------


#: in their order: first the server's own and the five that have always been, then ours
SECTIONS = [
    *("Modules", "ai_versions", "ai_git", "ai_load_time_configs", "ai_backends_info", "ai_cpu"),
    *("ai_runtime", "ai_batches", "ai_sessions", "ai_isolation", "ai_queues"),
]


def sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """As old tools read INFO: split at every '#', then at blanks, then at the first colon."""
    found = []
    for part in text.split("#")[1:]:
        name, *lines = part.split()
        found.append((name, dict(line.split(":", 1) for line in lines)))
    return found


def info_text(client: Any, section: str) -> str:
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command("INFO", section)
        return connection.read_response().decode()
    finally:
        client.connection_pool.release(connection)


def test_info_sections_keep_their_places(start_server: Callable[..., Server]) -> None:
    r = start_server(module_args=("THREADS_PER_QUEUE", "2")).client()
    found = sections(info_text(r, "modules"))
    assert [name for name, _ in found] == SECTIONS
    assert found[1][1] == {"ai_RedisAI_version": "1.2.7", "ai_low_level_API_version": "1", "ai_rdb_version": "4"}
    assert list(found[2][1]) == ["ai_git_sha"]
    assert list(found[3][1]) == [
        "ai_threads_per_queue",
        "ai_inter_op_parallelism",
        "ai_intra_op_parallelism",
        "ai_model_execution_timeout",
        "ai_backend_memory_limit",
    ]
    assert found[4][1] == {}
    cpu = found[5][1]
    processes = [f"ai_{who}_used_cpu_{kind}" for who in ("self", "children", "main_thread") for kind in ("sys", "user")]
    assert list(cpu)[:6] == processes
    assert {"ai_queue_CPU_bthread_n1_used_cpu_total", "ai_queue_CPU_bthread_n2_used_cpu_total"} <= set(cpu)
    assert all(re.fullmatch(r"\d+\.\d{6}", value) for value in cpu.values())


def test_info_ai_shows_our_sections_and_plain_info_does_not(r: Any) -> None:
    assert "# ai_versions" in info_text(r, "ai")
    assert info_text(r, "ai_git").split()[:2] == ["#", "ai_git"]
    assert "ai_versions" not in info_text(r, "default")


def test_a_devices_name_cannot_break_the_lines_of_info(r: Any) -> None:
    r.restore("s", 0, rdb.script("def f(a):\n    return a\n", device="CPU #1\r\n# ai_forged\r\nx:1"))
    found = sections(info_text(r, "modules"))
    assert [name for name, _ in found] == SECTIONS
    assert "ai_queue_CPU__1____AI_FORGED__X" in found[-1][1]


def test_runtime_section(r: Any) -> None:
    info = r.info("ai_runtime")
    assert re.fullmatch(r"3\.\d+\.\d+", str(info["ai_python_version"]))
    assert info["ai_jobs_in_flight"] == 0
    queues = r.info("ai_queues")
    assert queues["ai_queue_CPU_length"] == 0


def test_a_crash_report_shows_our_sections(start_server: Callable[..., Server]) -> None:
    server = start_server("--crash-memcheck-enabled", "no")
    with pytest.raises(redis.ConnectionError):
        server.client(retry=None).execute_command("DEBUG", "SEGFAULT")
    server.process.wait(60)
    log = server.log()
    assert "# ai_cpu" in log and "# ai_runtime" in log
    assert "ai_queue_CPU" not in log, "a report is written on whatever thread crashed, which may hold the lock"
