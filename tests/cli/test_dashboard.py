"""The Grafana dashboard against a real Prometheus that asks a real exporter: every panel shows something, and it is what happened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from conftest import echo_model
from servers import ROOT, Server, free_port, wait_until

sys.path.insert(0, str(ROOT / "tools"))

import dashboard

WINDOW = "10s"
CONFIGURATION = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs:
  - job_name: redisai
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    """With flows, so that no panel has a reason to stay empty."""
    return start_server(module_args=["FLOWS", "yes"])


@pytest.fixture
def exporter(server: Server) -> Iterator[int]:
    """The port of an exporter of `server`."""
    pytest.importorskip("prometheus_client")
    line = [sys.executable, "-m", "redisai_py", "exporter", "-p", str(server.port), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr
        try:
            found = re.search(r":(\d+)/metrics", process.stderr.readline())
            assert found
            yield int(found[1])
        finally:
            process.terminate()


@pytest.fixture
def prometheus(exporter: int, tmp_path: Path) -> Iterator[str]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    (tmp_path / "prometheus.yml").write_text(CONFIGURATION.format(port=exporter))
    port = free_port()
    line = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with subprocess.Popen([*line, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(url), "an answer from Prometheus")
            yield url
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return bool(dashboard.ask(url, "query", query="redisai_up == 1")["result"])
    except (OSError, ValueError):  # not listening, not ready
        return False


def calls(url: str) -> float:
    found = dashboard.ask(url, "query", query='redisai_calls_total{key="m"}')["result"]
    return float(found[0]["value"][1]) if found else 0.0


def test_every_panel_of_the_dashboard_shows_what_happened(prometheus: str, r: redis.Redis) -> None:
    r.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BATCHSIZE", 4, "BLOB", echo_model())
    r.execute_command("AI.MODELSTORE", "bad", "ONNX", "CPU:1", "BLOB", echo_model("raise", text="ERR on purpose"))
    r.execute_command("AI.TENSORSET", "t", "FLOAT", 3, 2)

    def run() -> None:
        r.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "t", "OUTPUTS", 1, "u")
        with pytest.raises(redis.ResponseError):
            r.execute_command("AI.MODELEXECUTE", "bad", "INPUTS", 1, "t", "OUTPUTS", 1, "u")

    run()
    seen = wait_until(lambda: calls(prometheus), "the first runs in Prometheus")
    for _ in range(5):
        run()
    wait_until(lambda: calls(prometheus) > seen, "more of them")
    board = json.loads(dashboard.DASHBOARD.read_text())
    lists = {line.legend: line.value for line in dashboard.choices(prometheus, board)}
    assert lists["Key"] == "bad, m"
    lines = list(dashboard.shown(prometheus, board, WINDOW))
    assert not [line for line in lines if line.wrong]
    titles = {panel["title"] for panel in board["panels"] if panel["type"] != "row"}
    assert {line.panel for line in lines} == titles and len(titles) > 10
    assert r.execute_command("RG.PYEXECUTE", "GB('CommandReader').map(len).register(trigger='count')") == b"OK"
    r.execute_command("RG.TRIGGER", "count")
    wait_until(lambda: dashboard.ask(prometheus, "query", query="redisai_flows_triggered_total > 0")["result"], "the trigger")
    values = {(line.panel, line.legend): float(line.value) for line in lines}
    assert values["Runs per second", "m"] > 0
    assert values["Errors per second", "bad"] > 0 and values["Errors per second", "m"] == 0
    assert values["Errors per second", "ai.modelexecute"] > 0
    assert values["Requests per batch", "m"] == 1
    assert values["Opened models and scripts", "ONNX"] == 2


def test_a_panel_that_asks_for_what_is_not_there_or_cannot_be_read_is_found(prometheus: str) -> None:
    def board(expression: str, legend: str) -> dict[str, object]:
        return {"panels": [{"title": "p", "targets": [{"expr": expression, "legendFormat": legend}]}]}

    for expression, legend in (("redisai_no_such", "x"), ("sum(redisai_up", "x"), ("redisai_up", "{{device}}")):
        (line,) = dashboard.shown(prometheus, board(expression, legend), WINDOW)
        assert line.wrong, expression
    assert not next(dashboard.shown(prometheus, board("redisai_up", "{{job}}"), WINDOW)).wrong
