"""What the module says of itself: INFO, the report of a crash, the log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import echo_model
from servers import EXAMPLE_MODELS, Server, default_binary, free_port, module_path, server_binaries, wait_until
from wire import OK, Error, Wire

FIRST = ["ai_versions", "ai_git", "ai_load_time_configs", "ai_backends_info", "ai_cpu"]
OURS = ["ai_runtime", "ai_batches", "ai_sessions", "ai_isolation", "ai_queues"]


@pytest.fixture
def w(every_server: Server) -> Iterator[Wire]:
    with Wire(every_server.port) as wire:
        yield wire


def sections(text: str) -> dict[str, dict[str, str]]:
    """INFO as tools of 1.2.7 read it: split at every '#', then at blanks, then at a colon."""
    found = {}
    for part in text.split("#")[1:]:
        name, *lines = part.split()
        found[name] = dict(line.split(":", 1) for line in lines if ":" in line)
    return found


def info(w: Wire, which: str = "modules") -> dict[str, dict[str, str]]:
    return sections(w("INFO", which).decode())


def number(w: Wire, section: str, name: str) -> int:
    return int(info(w)[f"ai_{section}"][f"ai_{name}"])


# ---- INFO -------------------------------------------------------------------------------------------------------------


def test_the_sections_that_were_always_there_come_first(w: Wire) -> None:
    names = [name for name in info(w) if name.startswith("ai_")]
    assert names == FIRST + OURS


def test_every_field_is_a_word_of_its_own(w: Wire) -> None:
    text = w("INFO", "modules").decode()
    ours = text[text.index("# ai_versions") :].split("\r\n")
    for line in ours:
        assert re.fullmatch(r"(# ai_\w+|ai_[\w:]+:[^\s#]+)?", line), line


def test_one_section_can_be_asked_for(w: Wire) -> None:
    for name in FIRST + OURS:
        assert list(info(w, name)) == [name]
    assert not any(name.startswith("ai_") for name in info(w, "default"))


def test_runtime_names_python_and_counts_loads(w: Wire) -> None:
    runtime = info(w)["ai_runtime"]
    version = runtime["ai_python_version"]
    assert version.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    done, failed = number(w, "runtime", "loads_done"), number(w, "runtime", "loads_failed")
    assert w("AI.MODELSTORE", "m", "TORCH", "CPU", "BLOB", echo_model()) == OK
    assert isinstance(w("AI.MODELSTORE", "n", "TORCH", "CPU", "BLOB", echo_model(open_raise="no")), Error)
    assert number(w, "runtime", "loads_done") == done + 1
    assert number(w, "runtime", "loads_failed") == failed + 1
    assert number(w, "runtime", "loads_in_progress") == 0


def test_loads_in_progress_are_counted(every_server: Server, w: Wire) -> None:
    with Wire(every_server.port) as first, Wire(every_server.port) as second:
        for wire, key in ((first, "a"), (second, "b")):
            wire.send("AI.MODELSTORE", key, "TORCH", "CPU", "BLOB", echo_model(open_sleep=0.2))
        wait_until(lambda: number(w, "runtime", "loads_in_progress") == 2, "both to wait")
        assert first.read() == second.read() == OK
    assert number(w, "runtime", "loads_in_progress") == 0


def test_sessions_and_their_memory_follow_the_models(w: Wire) -> None:
    wait_until(lambda: number(w, "sessions", "TFLITE_sessions") == 0, "sessions of earlier tests to close")
    assert number(w, "sessions", "TFLITE_memory_estimate") == 0
    for key in ("a", "b"):
        w("AI.MODELSTORE", key, "TFLITE", "CPU", "BLOB", echo_model(), b" " * 100_000)
    assert number(w, "sessions", "TFLITE_sessions") == 2
    assert number(w, "sessions", "TFLITE_memory_estimate") == 2 * (100_000 + len(echo_model()))
    w("AI.MODELSTORE", "a", "ONNX", "CPU", "BLOB", echo_model())
    w("DEL", "b")
    wait_until(lambda: number(w, "sessions", "TFLITE_sessions") == 0, "the sessions to close")
    assert number(w, "sessions", "TFLITE_memory_estimate") == 0


def test_batches_are_counted_by_size(every_server: Server, w: Wire, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    w("AI.TENSORSET", "x", "FLOAT", 1, 1)
    w("AI.MODELSTORE", "gated", "TORCH", "CPU", "BLOB", echo_model("gate", path=str(gate)))
    w("AI.MODELSTORE", "m", "TORCH", "CPU", "BATCHSIZE", 8, "BLOB", echo_model())
    before = {name: int(value) for name, value in info(w)["ai_batches"].items()}
    wires = [Wire(every_server.port) for _ in range(6)]
    for wire, model in zip(wires, ("gated", *"mmmmm"), strict=True):
        wire.send("AI.MODELEXECUTE", model, "INPUTS", 1, "x", "OUTPUTS", 1, "y")
        wait_until(lambda: number(w, "queues", "queue_CPU_idle_workers") == 0, "the run that the others wait for")
    wait_until(lambda: number(w, "queues", "queue_CPU_length") == 5, "the queue to fill")
    gate.touch()
    assert [wire.read() for wire in wires] == [OK] * 6
    for wire in wires:
        wire.close()
    after = {name: int(value) for name, value in info(w)["ai_batches"].items()}
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["ai_calls"] == 6 and grown["ai_errors"] == 0
    assert grown["ai_batches"] == 2 and grown["ai_batched_requests"] == 6
    assert grown["ai_batches_of_1_and_more"] == 1 and grown["ai_batches_of_4_and_more"] == 1
    assert grown["ai_wait_us"] > 0


def test_info_answers_while_python_is_busy(every_server: Server, w: Wire) -> None:
    w("AI.TENSORSET", "x", "FLOAT", 1)
    w("AI.MODELSTORE", "spin", "TORCH", "CPU", "BLOB", echo_model("spin", seconds=0.3))
    with Wire(every_server.port) as runner:
        runner.send("AI.MODELEXECUTE", "spin", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
        wait_until(lambda: number(w, "queues", "queue_CPU_idle_workers") == 0, "the run")
        assert number(w, "runtime", "jobs_in_flight") == 1, "INFO waited for the run"
        assert runner.read() == OK


# ---- the report of a crash -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", server_binaries())
def test_a_crash_is_reported_with_our_sections_and_ends(start_server: Callable[..., Server], name: str) -> None:
    server = start_server("--crash-memcheck-enabled", "no", binary=server_binaries()[name])
    assert server.process is not None
    with Wire(server.port) as w, Wire(server.port) as runner:
        w("AI.TENSORSET", "x", "FLOAT", 1)
        w("AI.MODELSTORE", "spin", "TORCH", "CPU", "BLOB", echo_model("spin", seconds=60))
        runner.send("AI.MODELEXECUTE", "spin", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
        wait_until(lambda: number(w, "queues", "queue_CPU_idle_workers") == 0, "a run that holds the GIL")
        w.send("DEBUG", "SEGFAULT")
        server.process.wait(30)
    report = server.log()
    assert "crashed by signal" in report
    for section in ("ai_versions", "ai_cpu", "ai_runtime", "ai_batches", "ai_sessions"):
        assert f"# {section}" in report, section
    assert "ai_jobs_in_flight:1" in report
    assert "ai_queue_CPU" not in report, "what only a lock makes readable is left out: the thread that crashed may hold it"


# ---- the log ----------------------------------------------------------------------------------------------------------------


def lines(server: Server) -> list[tuple[str, str]]:
    """Our lines: level (one of the server's signs) and text."""
    return re.findall(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ ([.\-*#]) <ai> (.*)$", server.log(), re.M)


@pytest.mark.parametrize("key", ["loud", "l\nö ud"])
def test_whatever_a_library_says_goes_to_the_log_under_the_key(start_server: Callable[..., Server], key: str) -> None:
    server = start_server("--loglevel", "verbose")
    with Wire(server.port) as w:
        w("AI.TENSORSET", "x", "FLOAT", 1)
        w("AI.MODELSTORE", key, "TORCH", "CPU", "BLOB", echo_model("say", text="mind the gap"))
        assert w("AI.MODELEXECUTE", key, "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
    shown = key if key.isprintable() else ascii(key)
    for level, text in (
        ("#", "mind the gap"),
        ("#", "UserWarning: warned: mind the gap"),
        ("-", "printed: mind the gap"),
        ("#", "complained: mind the gap"),
    ):
        assert (level, f"{shown}: {text}") in lines(server), text


def test_what_goes_wrong_is_a_warning_that_names_the_key(start_server: Callable[..., Server]) -> None:
    server = start_server()
    with Wire(server.port) as w:
        w("AI.TENSORSET", "x", "FLOAT", 1)
        w("AI.MODELSTORE", "bad", "TORCH", "CPU", "BLOB", echo_model(open_raise="ERR no such thing"))
        w("AI.MODELSTORE", "oom", "TORCH", "CPU", "BLOB", echo_model("oom"))
        assert isinstance(w("AI.MODELEXECUTE", "oom", "INPUTS", 1, "x", "OUTPUTS", 1, "y"), Error)
    warnings = [text for level, text in lines(server) if level == "#"]
    assert any(re.match(r"bad could not be opened: .*no such thing", text) for text in warnings)
    assert any(text.startswith("oom: a run failed: MemoryError") for text in warnings)
    notices = [text for level, text in lines(server) if level == "*"]
    assert any(text.startswith("Python 3.") for text in notices)


def test_a_key_that_is_not_text_is_logged(start_server: Callable[..., Server]) -> None:
    server = start_server()
    with Wire(server.port) as w:
        w("AI.MODELSTORE", b"\xff\x00\xfe", "TORCH", "CPU", "BLOB", echo_model(open_raise="no"))
    assert any("could not be opened" in text for level, text in lines(server) if level == "#")


@pytest.mark.slow
@pytest.mark.needs_torch
@pytest.mark.needs_onnx
@pytest.mark.needs_tflite
@pytest.mark.needs_tf
def test_no_library_writes_past_the_log(tmp_path: Path) -> None:
    """Real backends are loaded, run, and made to fail: standard output and standard error of the server stay empty."""
    port, log, said = free_port(), tmp_path / "log", tmp_path / "said"
    line = [str(default_binary()), "--port", str(port), "--save", "", "--dir", str(tmp_path), "--logfile", str(log)]
    with said.open("wb") as output:
        process = subprocess.Popen([*line, "--loadmodule", str(module_path())], stdout=output, stderr=output, env=_without_test_backend())
    try:
        with wait_until(lambda: _connected(port, process), "the server") as w:
            w.socket.settimeout(120)
            _use_every_backend(w)
            w.send("SHUTDOWN", "NOSAVE")
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert said.read_bytes() == b""
    assert "backend loaded" in log.read_text()


def _without_test_backend() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "REDISAI_TEST_BACKEND"}


def _connected(port: int, process: subprocess.Popen[bytes]) -> Wire | None:
    assert process.poll() is None
    try:
        return Wire(port)
    except OSError:
        return None


def _use_every_backend(w: Wire) -> None:
    assert w("AI.TENSORSET", "x", "FLOAT", 1, 64) == OK
    names: dict[str, list[Any]] = {"tf": ["INPUTS", 1, "x", "OUTPUTS", 1, "probabilities"]}
    for backend, suffix in (("torch", "pt"), ("onnx", "onnx"), ("tflite", "tflite"), ("tf", "pb")):
        blob = (EXAMPLE_MODELS / f"digits.{suffix}").read_bytes()
        stored = w("AI.MODELSTORE", backend, backend, "CPU", *names.get(backend, []), "BLOB", blob)
        run = w("AI.MODELEXECUTE", backend, "INPUTS", 1, "x", "OUTPUTS", 1, "y")
        assert (stored, run) == (OK, OK), (backend, stored, run)
        assert isinstance(w("AI.MODELSTORE", "bad", backend, "CPU", *names.get(backend, []), "BLOB", blob[:1000]), Error)
