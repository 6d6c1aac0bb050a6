"""store, models, run and export on a server with the echo backend; real formats where the format is what is tested."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from conftest import echo_model
from redisai_command import Redisai, call
from servers import EXAMPLE_MODELS, MODELS, Server

SAMPLE = EXAMPLE_MODELS / "digits_sample.npy"
SCRIPT = "def add(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0] + tensors[1]\n"


@pytest.fixture
def redisai(capfd: pytest.CaptureFixture[str]) -> Redisai:
    """redisai("models", "-p", 6379) -> Done(status, out, err)"""
    return partial(call, capfd)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "echo.model"
    path.write_text(echo_model())
    return path


# ---- store -------------------------------------------------------------------------------------------------------------------------


def test_store_passes_every_option_on_in_the_order_the_server_wants(server: Server, r: redis.Redis, redisai: Redisai, model: Path) -> None:
    options = "--key k --backend tf --device cpu:1 --tag v1 --batchsize 8 --minbatchsize 2 --minbatchtimeout 9 --inputs a --outputs b"
    done = redisai("store", model, *options.split(), "-p", server.port)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("k: TF on cpu:1, ")
    meta: dict[Any, Any] = dict(zip(*[iter(r.execute_command("AI.MODELGET", "k", "META"))] * 2, strict=True))
    numbers = [meta[name] for name in (b"batchsize", b"minbatchsize", b"minbatchtimeout")]
    assert numbers == [8, 2, 9]
    assert [meta[name] for name in (b"backend", b"tag", b"inputs", b"outputs")] == [b"TF", b"v1", [b"a"], [b"b"]]
    assert r.execute_command("AI.MODELGET", "k", "BLOB") == model.read_bytes()


def test_store_sends_chunks_of_the_servers_size(server: Server, r: redis.Redis, redisai: Redisai, tmp_path: Path) -> None:
    before = r.execute_command("AI.CONFIG", "GET", "MODEL_CHUNK_SIZE")
    model = tmp_path / "long.model"
    model.write_text(echo_model() + " " * 2500)
    r.execute_command("AI.CONFIG", "MODEL_CHUNK_SIZE", 1000)
    try:
        done = redisai("store", model, "--backend", "ONNX", "--json", "-p", server.port)
        assert done.json["chunks"] == 3
        assert done.json["bytes"] == len(model.read_bytes())
        assert b"".join(r.execute_command("AI.MODELGET", "long", "BLOB")) == model.read_bytes()
        assert redisai("export", "long", "-", "-p", server.port).out.encode() == model.read_bytes()
    finally:
        r.execute_command("AI.CONFIG", "MODEL_CHUNK_SIZE", before)


@pytest.mark.needs_torch
@pytest.mark.needs_onnx
@pytest.mark.needs_tflite
@pytest.mark.parametrize(("file", "backend"), [("digits.onnx", "ONNX"), ("digits.tflite", "TFLITE"), ("digits.pt", "TORCH")])
def test_the_backend_is_taken_from_the_bytes(file: str, backend: str, real_server: Server, real: redis.Redis, redisai: Redisai) -> None:
    done = redisai("store", EXAMPLE_MODELS / file, "--json", "-p", real_server.port)
    assert (done.json["backend"], done.json["key"]) == (backend, "digits")
    assert real.execute_command("AI.MODELGET", "digits", "META")[1].decode() == backend


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (np.ones(3).tobytes() * 9, "--backend"),
        (b"\x80\x04\x95rest of a pickle", "convert the model"),
        ((MODELS / "graph.pb").read_bytes(), "--inputs and --outputs"),
    ],
)
def test_what_is_no_model_is_refused_before_it_travels(blob: bytes, words: str, redisai: Redisai, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(blob)
    done = redisai("store", tmp_path / "file", "-p", 1)
    assert done.status in (1, 2)
    assert words in done.err
    assert "no server" not in done.err


def test_a_refusal_of_the_server_is_shown_and_the_key_stays(server: Server, r: redis.Redis, redisai: Redisai, model: Path) -> None:
    done = redisai("store", model, "--backend", "ONNX", "--device", "nowhere", "-p", server.port)
    assert done.status == 1
    assert done.err.startswith("Error: ")
    assert not r.exists("echo")


# ---- models ------------------------------------------------------------------------------------------------------------------------


def test_models_lists_models_and_scripts_with_their_figures(server: Server, r: redis.Redis, redisai: Redisai) -> None:
    assert redisai("models", "--json", "-p", server.port).json == []
    r.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "TAG", "v2", "BLOB", echo_model())
    r.execute_command("AI.TENSORSET", "t", "FLOAT", 3, 2)
    for _ in range(4):
        r.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "t", "OUTPUTS", 1, "u")
    (found,) = redisai("models", "--json", "-p", server.port).json
    assert (found["key"], found["type"], found["backend"], found["device"], found["tag"]) == ("m", "MODEL", "ONNX", "CPU", "v2")
    assert (found["calls"], found["errors"], found["samples"]) == (4, 0, 12)
    assert (found["batches"], found["mean_batch"], found["batch_sizes"]) == (4, 1.0, {"1": 4})
    assert found["memory"] == r.execute_command("MEMORY", "USAGE", "m")
    heads, row = redisai("models", "-p", server.port).cells()
    assert heads[:6] == ["KEY", "TYPE", "BACKEND", "DEVICE", "TAG", "CALLS"]
    assert row[:6] == ["m", "model", "ONNX", "CPU", "v2", "4"]


def test_models_looks_into_the_database_that_is_named(server: Server, redisai: Redisai, model: Path) -> None:
    assert redisai("store", model, "--backend", "ONNX", "-n", 3, "-p", server.port).status == 0
    assert [found["key"] for found in redisai("models", "--json", "-n", 3, "-p", server.port).json] == ["echo"]
    assert redisai("models", "--json", "-p", server.port).json == []


# ---- run ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def echo(server: Server, r: redis.Redis) -> Server:
    r.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", echo_model())
    return server


def test_run_takes_numpy_files_and_writes_them_without_any_key(echo: Server, r: redis.Redis, redisai: Redisai, tmp_path: Path) -> None:
    for array in (np.arange(6, dtype=np.int16).reshape(2, 3), np.array([[True, False]]), np.random.default_rng(0).random((4, 1))):
        np.save(tmp_path / "in.npy", array)
        assert redisai("run", "m", "--input", tmp_path / "in.npy", "--output", tmp_path / "out.npy", "-p", echo.port).status == 0
        result = np.load(tmp_path / "out.npy")
        assert result.dtype == array.dtype
        np.testing.assert_array_equal(result, array)
    assert r.keys() == [b"m"]


@pytest.mark.parametrize(
    ("source", "options", "dtype", "expected"),
    [
        ("1,2,3", "", "FLOAT", [1.0, 2.0, 3.0]),
        ("[[1,2],[3,4]]", "--dtype int32", "INT32", [[1, 2], [3, 4]]),
        ("1,2,3,4", "--shape 2x2 --dtype DOUBLE", "DOUBLE", [[1.0, 2.0], [3.0, 4.0]]),
        ("-7", "--dtype INT8", "INT8", [-7]),
        ('["one","two"]', "--dtype STRING", "STRING", ["one", "two"]),
        ("some text", "--dtype STRING", "STRING", ["some text"]),
        ("[true,false]", "--dtype BOOL", "BOOL", [True, False]),
    ],
)
def test_run_takes_typed_values(source: str, options: str, dtype: str, expected: list[Any], echo: Server, redisai: Redisai) -> None:
    done = redisai("run", "m", f"--input={source}", *options.split(), "--json", "-p", echo.port)
    (output,) = done.json["outputs"]
    assert (output["dtype"], output["values"]) == (dtype, expected)


def test_run_takes_tables_with_and_without_headings(echo: Server, redisai: Redisai, tmp_path: Path) -> None:
    for heading in ("", "width,height\n"):
        (tmp_path / "in.csv").write_text(f"{heading}1,2.5\n3,4\n")
        assert redisai("run", "m", "-i", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "-p", echo.port).status == 0
        np.testing.assert_array_equal(np.loadtxt(tmp_path / "out.csv", delimiter=","), [[1, 2.5], [3, 4]])


def test_run_takes_images_in_the_layout_that_is_asked_for(echo: Server, redisai: Redisai, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :, 1] = 255
    image.fromarray(pixels).save(tmp_path / "in.png")
    options = {"": (4, 6, 3), "--layout NCHW": (1, 3, 4, 6), "--layout nhwc --size 2x3 --divide 255": (1, 2, 3, 3)}
    for given, shape in options.items():
        assert redisai("run", "m", "-i", tmp_path / "in.png", *given.split(), "-o", tmp_path / "out.npy", "-p", echo.port).status == 0
        assert np.load(tmp_path / "out.npy").shape == shape
    result = np.load(tmp_path / "out.npy")
    assert (result.dtype, result[..., 1].min(), result[..., 0].max()) == (np.float32, 1.0, 0.0)


def test_run_writes_several_outputs_to_one_file(server: Server, r: redis.Redis, redisai: Redisai, tmp_path: Path) -> None:
    r.execute_command("AI.MODELSTORE", "two", "ONNX", "CPU", "BLOB", echo_model(inputs=2, outputs=2))
    line = ["run", "two", "-i", "1,2", "-i", "3", "--outputs", 2, "-p", server.port, "-o"]
    assert redisai(*line, tmp_path / "out.npz").status == 0
    assert [array.tolist() for array in np.load(tmp_path / "out.npz").values()] == [[1, 2], [3]]
    done = redisai(*line, tmp_path / "out.npy")
    assert (done.status, ".npz" in done.err) == (1, True)


@pytest.mark.needs_torch
def test_run_calls_a_function_of_a_script(real_server: Server, real: redis.Redis, redisai: Redisai) -> None:
    real.execute_command("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "add", "SOURCE", SCRIPT)
    done = redisai("run", "s", "--function", "add", "-i", "1,2", "-i", "3,4", "--json", "-p", real_server.port)
    assert done.json["outputs"][0]["values"] == [4.0, 6.0]
    done = redisai("run", "s", "-i", "1,2", "-p", real_server.port)
    assert (done.status, "--function (add)" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("run nothing -i 1", 1, "cannot find run info for key"),
        ("run m -i absent.npy", 2, "No such file"),
        ("run m -i words", 2, "neither a file"),
        ("run m -i 1,2,3 --shape 2x2", 2, "3 elements do not fill 2x2"),
        ("run m -i 1 -o out.txt", 2, ".npy, .npz, .csv"),
        ("run m -i 1 --function f", 2, "models have no functions"),
        ("run m -i 1 --size 3", 2, "write it as 28x28"),
        ("run m -i 1 -i 2", 1, "Error"),
    ],
)
def test_run_says_what_is_wrong(line: str, status: int, words: str, echo: Server, redisai: Redisai) -> None:
    done = redisai(*line.split(), "-p", echo.port)
    assert done.status == status, done.err
    assert words in done.err
    assert "Traceback" not in done.err


# ---- export ------------------------------------------------------------------------------------------------------------------------


def test_export_gives_back_what_was_stored(echo: Server, redisai: Redisai, tmp_path: Path) -> None:
    out = tmp_path / "out.model"
    assert redisai("export", "m", out, "-p", echo.port).status == 0
    assert out.read_text() == echo_model()
    out.write_text("mine")
    assert redisai("export", "m", out, "-p", echo.port).status == 1
    assert out.read_text() == "mine"
    assert redisai("export", "m", out, "--force", "--json", "-p", echo.port).json["bytes"] == len(echo_model())
    assert out.read_text() == echo_model()
    assert [path.name for path in tmp_path.iterdir()] == ["out.model"]


def test_export_of_a_key_that_is_no_model_writes_nothing(server: Server, r: redis.Redis, redisai: Redisai, tmp_path: Path) -> None:
    r.set("text", "x")
    for key in ("text", "absent"):
        assert redisai("export", key, tmp_path / "out", "-p", server.port).status == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs_torch
def test_export_of_a_script_is_its_source(real_server: Server, real: redis.Redis, redisai: Redisai) -> None:
    real.execute_command("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "add", "SOURCE", SCRIPT)
    assert redisai("export", "s", "-", "-p", real_server.port).out == SCRIPT


# ---- quickstart --------------------------------------------------------------------------------------------------------------------


def test_the_samples_are_those_of_the_examples() -> None:
    from redisai_py.cli.quickstart import MODELS as FILES
    from redisai_py.cli.quickstart import PIXELS, SAMPLES

    for file, _ in FILES.values():
        assert (SAMPLES / file).read_bytes() == (EXAMPLE_MODELS / file).read_bytes(), file
    assert np.load(SAMPLE)[3].tolist() == list(PIXELS)


@pytest.mark.needs_torch
@pytest.mark.needs_onnx
def test_the_tour_finds_its_digit_and_leaves_nothing(real_server: Server, real: redis.Redis, redisai: Redisai) -> None:
    done = redisai("quickstart", "--json", "-p", real_server.port)
    assert (done.status, done.json["ok"]) == (0, True)
    replies = {step["command"].split(" ")[0]: step["reply"] for step in done.json["steps"]}
    assert replies["AI.TENSORGET"] == [3]
    assert real.keys() == []
    assert "{quickstart}:digits" in redisai("quickstart", "--keep", "-p", real_server.port).out
    assert len(real.keys()) == 5
    again = redisai("quickstart", "-p", real_server.port)
    assert (again.status, "5 of the tour's keys exist" in again.err) == (1, True)
    assert len(real.keys()) == 5


def test_the_tour_goes_to_the_next_backend_and_on_without_scripts(server: Server, r: redis.Redis, redisai: Redisai) -> None:
    """The echo backend opens none of the files."""
    done = redisai("quickstart", "-p", server.port)
    assert done.status == 1
    for backend in ("ONNX", "TFLITE", "TORCH", "TF"):
        assert f"  {backend}: ERR " in done.err
    assert r.keys() == []


def test_json_of_a_key_with_odd_bytes_is_json(server: Server, r: redis.Redis, redisai: Redisai) -> None:
    r.execute_command("AI.MODELSTORE", b"\xff\xfe k", "ONNX", "CPU", "BLOB", echo_model())
    assert json.loads(redisai("models", "--json", "-p", server.port).out)[0]["key"] == "\\xff\\xfe k"
