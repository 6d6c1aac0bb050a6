"""top, bench and exporter: the figures they show are the server's."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import redis
from conftest import echo_model
from redisai_command import Redisai, call
from servers import EXAMPLE_MODELS, ROOT, Server, wait_until

from redisai_py.cli import figures
from redisai_py.cli.address import Address
from redisai_py.cli.client import connect
from redisai_py.cli.figures import BOUNDS_US, Command

DASHBOARD = ROOT / "docs" / "grafana-dashboard.json"


@pytest.fixture
def redisai(capfd: pytest.CaptureFixture[str]) -> Redisai:
    """redisai("models", "-p", 6379) -> Done(status, out, err)"""
    return partial(call, capfd)


@pytest.fixture
def busy(server: Server, r: redis.Redis) -> Server:
    """A model that ran five times and failed twice."""
    r.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "TAG", 'v"1"', "BLOB", echo_model())
    r.execute_command("AI.MODELSTORE", "bad", "ONNX", "CPU:1", "BLOB", echo_model("raise", text="ERR on purpose"))
    r.execute_command("AI.TENSORSET", "t", "FLOAT", 2, 2)
    for _ in range(5):
        r.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "t", "OUTPUTS", 1, "u")
    for _ in range(2):
        with pytest.raises(redis.ResponseError):
            r.execute_command("AI.MODELEXECUTE", "bad", "INPUTS", 1, "t", "OUTPUTS", 1, "u")
    return server


# ---- reading -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(server: Server) -> Iterator[redis.Redis]:
    """A client as the commands have it: replies as the server sends them."""
    with connect(Address(port=server.port)) as client:
        yield client


def test_the_bounds_are_those_the_server_uses(plain: redis.Redis) -> None:
    """Every bound of a real histogram is in the table, or counts would be put into the wrong bucket."""
    for seconds in (0.00001, 0.001, 0.01, 0.05):
        plain.execute_command("DEBUG", "SLEEP", seconds)
    for _ in range(500):
        plain.execute_command("PING")
    try:
        reply = plain.execute_command("LATENCY", "HISTOGRAM", "debug", "ping", "flushall")
    except redis.ResponseError:
        pytest.skip("a server before 7.0 has no LATENCY HISTOGRAM")
    for told in figures.pairs(reply).values():
        sparse = figures.pairs(told)["histogram_usec"]
        assert set(sparse[::2]) <= set(BOUNDS_US)
        assert figures.filled(sparse)[-1] == sparse[-1]


def test_percentiles_lie_in_the_bucket_that_holds_them() -> None:
    within = tuple(90 if bound < 500 else 100 for bound in BOUNDS_US)  # ninety in the first bucket, ten at 264 to 528 us
    found = Command("x", 100, 0, 0, within)
    assert 0 < (found.percentile(0.5) or 0) <= BOUNDS_US[0]
    assert 264 < (found.percentile(0.99) or 0) <= 528
    assert Command("x", 0, 0, 0, (0,) * len(BOUNDS_US)).percentile(0.5) is None
    assert Command("x", 9, 0, 0).percentile(0.5) is None


def test_fields_of_queues_with_a_colon_in_their_name_are_read_whole() -> None:
    info = dict(figures.info_fields("# s\r\nai_queue_CPU:1_length:3\r\nredis_version:7.0\r\nlink:http://a:1\r\n"))
    assert info == {"ai_queue_CPU:1_length": "3", "redis_version": "7.0", "link": "http://a:1"}
    assert figures.queues(info) == {"CPU:1": {"length": 3}}


def test_names_are_scanned_again_only_when_something_changed(plain: redis.Redis) -> None:
    names = figures.Names()

    def scans() -> int:
        return int(figures.read_info(plain).get("cmdstat_ai._modelscan", "calls=0").split(",")[0].split("=")[1])

    start = scans()
    for _ in range(3):
        assert names.read(plain, figures.read_info(plain)) == []
    assert scans() == start + 1
    plain.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model())
    assert names.read(plain, figures.read_info(plain)) == [b"m"]
    plain.execute_command("DEL", "m")
    wait_until(lambda: names.read(plain, figures.read_info(plain)) == [], "the deleted model's session to be closed")


# ---- top ---------------------------------------------------------------------------------------------------------------------------


def test_top_shows_rates_of_the_interval_and_totals(busy: Server, redisai: Redisai) -> None:
    stop = threading.Event()

    def load() -> None:
        with busy.client() as client:
            while not stop.is_set():
                client.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "t", "OUTPUTS", 1, "u")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        told = redisai("top", "--json", "-i", 0.3, "-p", busy.port).json
    finally:
        stop.set()
        thread.join()
    programs = {program["key"]: program for program in told["programs"]}
    assert 10 < programs["m"]["calls_per_second"] < 100_000
    assert programs["m"]["batch"] == 1.0
    assert (programs["bad"]["calls_per_second"], programs["bad"]["errors"]) == (0, 2)
    assert {queue["device"] for queue in told["queues"]} >= {"CPU", "CPU:1"}
    execute = next(command for command in told["commands"] if command["command"] == "ai.modelexecute")
    assert abs(execute["calls_per_second"] - programs["m"]["calls_per_second"]) < 0.2 * programs["m"]["calls_per_second"] + 20
    if execute["p50_us"] is not None:
        assert 0 < execute["p50_us"] <= execute["p99_us"]


def test_top_in_a_pipe_is_one_plain_look(busy: Server, redisai: Redisai) -> None:
    done = redisai("top", "-i", 0.05, "-p", busy.port)
    assert (done.status, done.err) == (0, "")
    lines = [row for row in done.cells() if row]
    assert ["QUEUE", "LENGTH", "OPENING", "WORKERS", "BUSY"] in lines
    (row,) = [row for row in lines if row[0] == "bad"]
    assert row[-4:-2] == ["2", "2"]  # errors and calls, then memory with its unit


# ---- bench -------------------------------------------------------------------------------------------------------------------------


def test_bench_counts_what_the_server_counted_and_leaves_no_key(busy: Server, r: redis.Redis, redisai: Redisai) -> None:
    keys = sorted(r.keys())
    done = redisai("bench", "m", "-i", "FLOAT:1x4", "-c", "1,3", "--seconds", 0.2, "--no-bare", "--json", "-p", busy.port)
    assert done.status == 0
    rows = done.json["rows"]
    assert [row["clients"] for row in rows] == [1, 3]
    assert all(0 < row["p50_us"] <= row["p99_us"] and row["errors"] == 0 for row in rows)
    calls = r.execute_command("AI.INFO", "m")[15]
    assert calls == 5 + 1 + sum(row["requests"] for row in rows)
    assert sorted(r.keys()) == keys


def test_bench_refuses_to_write_over_keys(busy: Server, r: redis.Redis, redisai: Redisai) -> None:
    r.set("{m}:bench:in0", "mine")
    done = redisai("bench", "m", "-i", "FLOAT:1x4", "--seconds", 0.1, "-p", busy.port)
    assert (done.status, "{m}:bench:in0 exists" in done.err) == (1, True)
    assert r.get("{m}:bench:in0") == b"mine"


def test_bench_of_a_model_that_fails_says_so_at_once(busy: Server, r: redis.Redis, redisai: Redisai) -> None:
    done = redisai("bench", "bad", "-i", "FLOAT:1x4", "-p", busy.port)
    assert (done.status, r.keys("*bench*")) == (1, [])
    done = redisai("bench", "m", "-c", "0", "-p", busy.port)
    assert (done.status, "1,8,64" in done.err) == (2, True)


@pytest.mark.needs_onnx
def test_bench_learns_the_shapes_compares_with_the_library_and_draws(
    real_server: Server, real: redis.Redis, redisai: Redisai, tmp_path: Path
) -> None:
    real.execute_command("AI.MODELSTORE", "digits", "ONNX", "CPU", "BLOB", (EXAMPLE_MODELS / "digits.onnx").read_bytes())
    options = ["--seconds", 0.2, "-c", "1,2", "-p", real_server.port]
    drawn: list[object] = []
    if find_spec("matplotlib"):
        drawn = ["--plot", tmp_path / "digits.svg"]
    done = redisai("bench", "digits", *options, *drawn)
    assert done.status == 0, done.err
    assert done.cells()[0] == ["CLIENTS", "REQUESTS/S", "MEAN", "P50", "P99", "BATCH", "ERRORS"]
    assert re.search(r"^the library alone, one thread: p50 [\d.]+ us", done.out, re.MULTILINE)
    assert re.search(r"^the server adds [\d.]+ (us|ms) to the p50 of one client$", done.out, re.MULTILINE)
    if drawn:
        assert (tmp_path / "digits.svg").read_text().lstrip().startswith("<?xml")


# ---- exporter ----------------------------------------------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_metrics_are_the_servers_figures(busy: Server, redisai: Redisai) -> None:
    pytest.importorskip("prometheus_client")
    done = redisai("exporter", "--once", "-p", busy.port)
    assert (done.status, done.err) == (0, "")
    found = samples(done.out)
    m = '{backend=ONNX,device=CPU,key=m,tag=v"1",type=model}'
    bad = "{backend=ONNX,device=CPU:1,key=bad,tag=,type=model}"
    assert (found["redisai_up{}"], found[f"redisai_calls_total{m}"], found[f"redisai_errors_total{bad}"]) == (1, 5, 2)
    assert found[f"redisai_samples_total{m}"] == 10
    assert found["redisai_batch_requests_count{key=m}"] == found["redisai_batch_requests_bucket{key=m,le=1}"] == 5
    assert found["redisai_queue_length{device=CPU:1}"] == 0
    assert found["redisai_all_errors_total{}"] >= 2
    assert found["redisai_loads_total{result=done}"] >= 2
    assert found["redisai_command_seconds_count{command=ai.modelexecute}"] >= 7
    assert found["redisai_command_failures_total{command=ai.modelexecute}"] >= 2
    buckets = [value for name, value in found.items() if name.startswith("redisai_command_seconds_bucket{command=ai.modelexecute")]
    assert buckets == sorted(buckets)


def test_the_exporter_serves_on_while_the_server_is_away(busy: Server, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    line = [sys.executable, "-m", "redisai_py", "exporter", "-p", str(busy.port), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr
    try:
        url = re.search(r"http://\S+", process.stderr.readline())
        assert url
        with urllib.request.urlopen(url[0], timeout=20) as reply:
            assert "\nredisai_up 1.0\n" in reply.read().decode()
        with busy.client() as client:
            client.config_set("requirepass", "secret")
            client.client_kill_filter(_type="normal", skipme=True)
        try:
            with urllib.request.urlopen(url[0], timeout=20) as reply:
                assert "\nredisai_up 0.0\n" in reply.read().decode()
        finally:
            with busy.client(password="secret") as client:
                client.config_set("requirepass", "")
        with urllib.request.urlopen(url[0], timeout=20) as reply:
            assert "\nredisai_up 1.0\n" in reply.read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_requests_that_wait_for_a_model_to_open_are_told_apart_from_those_in_the_queue(
    server: Server, r: redis.Redis, redisai: Redisai, tmp_path: Path
) -> None:
    pytest.importorskip("prometheus_client")
    gate = tmp_path / "open"
    with r.pipeline(transaction=True) as transaction:  # nobody waits for an opening there
        transaction.execute_command("AI.MODELSTORE", "slow", "ONNX", "CPU", "BLOB", echo_model(open_gate=str(gate)))
        transaction.execute()
    r.execute_command("AI.TENSORSET", "t", "FLOAT", 1)
    thread = threading.Thread(target=r.execute_command, args=("AI.MODELEXECUTE", "slow", "INPUTS", 1, "t", "OUTPUTS", 1, "u"))
    thread.start()
    try:
        with server.client() as other:
            wait_until(lambda: other.info("ai")["ai_queue_CPU_waiting"] == 1)
        found = samples(redisai("exporter", "--once", "-p", server.port).out)
        assert (found["redisai_queue_opening{device=CPU}"], found["redisai_queue_length{device=CPU}"]) == (1, 0)
        told = json.loads(redisai("top", "--json", "--interval", "0.05", "-p", server.port).out)
        assert [(queue["device"], queue["waiting"], queue["length"]) for queue in told["queues"] if queue["device"] == "CPU"] == [
            ("CPU", 1, 0)
        ]
    finally:
        gate.touch()
        thread.join()


def test_every_metric_is_documented_and_the_dashboard_asks_for_metrics_that_are_there(
    busy: Server, redisai: Redisai, start_server: Callable[..., Server]
) -> None:
    pytest.importorskip("prometheus_client")
    from redisai_py.cli.exporter import METRICS

    page = (ROOT / "docs" / "metrics.md").read_text()
    suffixes = {"counter": "_total", "info": "_info"}
    for name, (kind, _, _) in METRICS.items():
        assert f"`{name}{suffixes.get(kind, '')}`" in page, name
    ports = (busy.port, start_server(module_args=["FLOWS", "yes"]).port)
    served = {name.partition("{")[0] for port in ports for name in samples(redisai("exporter", "--once", "-p", port).out)}
    assert {f"{name}{suffixes.get(kind, '')}" for name, (kind, _, _) in METRICS.items() if kind != "histogram"} <= served
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 12
    for expression in expressions:
        assert set(re.findall(r"redisai_\w+", expression)) <= served, expression


def test_arrays_of_every_numeric_dtype_go_to_the_server_and_back(plain: redis.Redis) -> None:
    from redisai_py.cli import arrays
    from redisai_py.tensor import DTYPES

    for name, dtype in DTYPES.items():
        array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
        plain.execute_command("AI.TENSORSET", "t", *arrays.tensorset(array))
        back = arrays.from_reply(plain.execute_command("AI.TENSORGET", "t", "META", "BLOB"))
        assert (back.dtype, back.tolist()) == (array.dtype, array.tolist()), name
