"""The example in the browser: what its page asks for over HTTP, answered by models in a real server."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import redis
from servers import ROOT, Server, free_port, wait_until

pytestmark = [pytest.mark.needs_torch, pytest.mark.needs_onnx, pytest.mark.needs_tflite]
pytest.importorskip("torch")
WEB = ROOT / "examples" / "web"
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("web_server", WEB / "server.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Browser:
    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
        self.connection.request(method, path, body)
        reply = self.connection.getresponse()
        return reply.status, reply.headers["Content-Type"], reply.read()

    def json(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        status, kind, text = self.ask(method, path, body)
        assert kind == "application/json"
        return status, json.loads(text)

    def recognise(self, path: str, picture: Array) -> Any:
        """A picture, uint8 [height, width, 3]; the browser sends an alpha channel as well."""
        height, width, _ = picture.shape
        pixels = np.concatenate([picture, np.full((height, width, 1), 255, np.uint8)], axis=2)
        status, answer = self.json("POST", f"{path}height={height}&width={width}", pixels.tobytes())
        assert status == 200, answer
        return answer


@pytest.fixture
def recognition(program: ModuleType, real_server: Server) -> Any:
    return program.Recognition(redis.Redis(port=real_server.port))


@pytest.fixture
def browser(program: ModuleType, recognition: Any) -> Iterator[Browser]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(program.Requests, recognition)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        found = Browser(server.server_port)
        yield found
        found.connection.close()
        server.shutdown()
        thread.join()


def drawn(cells: Array, side: int, above: int = 0, left: int = 0) -> Array:
    """Cells of 0 (white) to 16 as a picture of `side` pixels per cell, with white around it."""
    grey = np.kron(255 - np.asarray(cells).reshape(8, 8) * 255 / 16, np.ones((side, side)))
    picture = np.pad(grey, ((above, 5), (left, 9)), constant_values=255)
    return np.repeat(picture[:, :, None], 3, axis=2).astype(np.uint8)


def test_the_page_is_there_and_loads_nothing_from_elsewhere(browser: Browser) -> None:
    status, kind, text = browser.ask("GET", "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert not re.findall(r"""(?:src|href|fetch\()=?["'(](?:https?:)?//""", text.decode())
    assert browser.json("GET", "/nowhere")[0] == 404


def test_every_sample_is_recognised_by_every_backend(browser: Browser) -> None:
    _, about = browser.json("GET", "/about")
    assert {"ONNX", "TORCH"} <= set(about["backends"])
    for digit in about["digits"]:
        picture = drawn(digit["cells"], 35)
        answers = [browser.recognise(f"/digit?backend={backend}&", picture) for backend in about["backends"]]
        assert [int(np.argmax(answer["scores"])) for answer in answers] == [digit["label"]] * len(answers)
        assert np.ptp([answer["scores"] for answer in answers], axis=0).max() < 1e-3
        assert all(answer["ms"] > 0 for answer in answers)


def test_a_digit_may_be_small_off_the_middle_and_white_on_black(browser: Browser) -> None:
    _, about = browser.json("GET", "/about")
    for digit in about["digits"]:
        whole = browser.recognise("/digit?backend=ONNX&", drawn(digit["cells"], 16))
        for picture in (drawn(digit["cells"], 16, 90, 40), 255 - drawn(digit["cells"], 16, 30, 120)):
            answer = browser.recognise("/digit?backend=ONNX&", picture)
            assert np.abs(np.subtract(answer["saw"], whole["saw"])).max() < 0.1
            assert np.argmax(answer["scores"]) == digit["label"]


def test_an_empty_picture_has_an_answer_too(browser: Browser) -> None:
    answer = browser.recognise("/digit?backend=ONNX&", np.full((20, 30, 3), 255, np.uint8))
    assert answer["saw"] == [0.0] * 64 and len(answer["scores"]) == 10


def test_the_face_is_where_it_is(browser: Browser, program: ModuleType) -> None:
    image = pytest.importorskip("PIL.Image")
    if not (program.FACES.exists() and program.PICTURE.exists()):
        pytest.skip("not fetched: python tools/real_models.py")
    status, kind, picture = browser.ask("GET", "/picture")
    assert (status, kind) == (200, "image/png") and picture == program.PICTURE.read_bytes()
    pixels = np.asarray(image.open(program.PICTURE).convert("RGB").resize((256, 256)))
    ((certainty, *box),) = browser.recognise("/faces?", pixels)["faces"]
    assert certainty > 0.6
    assert np.abs(np.array(box) * 512 - [172, 74, 277, 180]).max() < 12
    assert browser.recognise("/faces?", np.zeros_like(pixels))["faces"] == []


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("/digit?backend=ONNX", 4),
        ("/digit?backend=ONNX&height=1&width=x", 4),
        ("/digit?backend=ONNX&height=2&width=2", 15),
        ("/digit?backend=ONNX&height=0&width=0", 0),
        ("/digit?backend=ONNX&height=-1&width=-1", 4),
        ("/digit?backend=no&height=1&width=1", 4),
        ("/digit?height=1&width=1", 4),
        ("/faces?height=8&width=8", 256),
        ("/else?height=1&width=1", 4),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_the_next_one_is_served(browser: Browser, path: str, size: int) -> None:
    status, answer = browser.json("POST", path, bytes(size))
    assert status == 400 and answer["error"]
    assert browser.json("GET", "/about")[0] == 200


def test_a_picture_that_is_too_large_is_refused_before_it_is_read(browser: Browser) -> None:
    for length in (str(4 * 1024 * 1024 + 1), "-1", "x"):
        browser.connection.putrequest("POST", "/digit?backend=ONNX&height=1025&width=1024")
        browser.connection.putheader("Content-Length", length)
        browser.connection.endheaders()
        reply = browser.connection.getresponse()
        assert (reply.status, reply.headers["Connection"]) == (413, "close")
        assert "at most" in json.loads(reply.read())["error"]


def test_a_redis_that_is_gone_is_said_to_the_browser(browser: Browser, recognition: Any) -> None:
    recognition.client = redis.Redis(port=1, retry=None)
    status, answer = browser.json("POST", "/digit?backend=ONNX&height=1&width=1", bytes(4))
    assert status == 502 and "Connection refused" in answer["error"]


def test_a_page_that_does_not_know_its_redis_ends_with_a_word() -> None:
    done = subprocess.run([sys.executable, WEB / "server.py", "--port", "1"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("Redis on port 1: ")


def test_the_program_serves_and_ends_at_an_interrupt(real_server: Server) -> None:
    import signal

    port = free_port()
    line = [sys.executable, WEB / "server.py", "--port", str(real_server.port), "--listen", str(port)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port} runs on ")
        assert wait_until(lambda: Browser(port).json("GET", "/about")[0] == 200)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
