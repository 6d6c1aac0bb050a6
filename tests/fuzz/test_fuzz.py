"""Each fuzzer for some seconds, from a seed that stays: what they once found does no harm, and what they make is worth being sent."""

from __future__ import annotations

import pytest

from . import models, parsers
from .oracle import oracle
from .restore import restore

SEED = 20261122


def test_no_restored_payload_ends_the_server_or_changes_on_its_way() -> None:
    assert restore(SEED, 100_000)["accepted"] > 5_000


@pytest.mark.skipif(not parsers.compiler(), reason="needs a C compiler")
@pytest.mark.parametrize("name", parsers.TARGETS)
def test_nothing_that_a_parser_once_met_does_harm(name: str) -> None:
    assert parsers.replay(name) > 50


@pytest.mark.skipif(not (parsers.compiler() and parsers.libfuzzer()), reason="libFuzzer comes with atheris")
@pytest.mark.parametrize("name", parsers.TARGETS)
def test_no_input_that_libfuzzer_makes_does_harm(name: str) -> None:
    assert parsers.fuzz(name, SEED, 30_000)["features"] > 1000


@pytest.mark.skipif(not parsers.compiler(), reason="needs a C compiler")
@pytest.mark.parametrize("name", parsers.TARGETS)
def test_no_change_of_what_a_parser_once_met_does_harm(name: str) -> None:
    assert parsers.storm(name, SEED, 50_000) == {}


OPENED = [
    pytest.param("torch", "torch", 400, marks=pytest.mark.needs_torch),
    pytest.param("script", "torch", 1000, marks=pytest.mark.needs_torch),
    pytest.param("tf", "tensorflow", 100, marks=pytest.mark.needs_tf),
    pytest.param("onnx", "onnxruntime", 2000, marks=pytest.mark.needs_onnx),
    pytest.param("tflite", "ai_edge_litert", 5000, marks=pytest.mark.needs_tflite),
]


@pytest.mark.parametrize(("name", "library", "count"), OPENED)
def test_no_broken_model_ends_the_process_that_opens_it(name: str, library: str, count: int) -> None:
    pytest.importorskip(library)
    models.replay(name)
    counts = models.fuzz(name, SEED, count)
    assert counts["findings"] == 0 and count // 50 < counts["opened"] < count


def test_every_reply_is_the_one_that_numpy_gives() -> None:
    assert oracle(SEED, 50_000)["reloads"] > 1
