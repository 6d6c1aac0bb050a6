"""Each fuzzer for some seconds, from a seed that stays: what they once found does no harm, and what they make is worth being sent."""

from __future__ import annotations

import pytest

from . import parsers
from .restore import restore

SEED = 20261122


def test_no_restored_payload_ends_the_server_or_changes_on_its_way() -> None:
    assert restore(SEED, 100_000)["accepted"] > 5_000


@pytest.mark.skipif(not parsers.compiler(), reason="needs a C compiler")
@pytest.mark.parametrize("name", parsers.TARGETS)
def test_nothing_that_a_parser_once_met_does_harm(name: str) -> None:
    assert parsers.replay(name) > 100


@pytest.mark.skipif(not (parsers.compiler() and parsers.libfuzzer()), reason="libFuzzer comes with atheris")
@pytest.mark.parametrize("name", parsers.TARGETS)
def test_no_input_that_libfuzzer_makes_does_harm(name: str) -> None:
    assert parsers.fuzz(name, SEED, 30_000)["features"] > 1000
