"""Each fuzzer for some seconds, from a seed that stays: what they once found does no harm, and what they make is worth being sent."""

from __future__ import annotations

from .restore import restore


def test_no_restored_payload_ends_the_server_or_changes_on_its_way() -> None:
    assert restore(20261122, 100_000)["accepted"] > 5_000
