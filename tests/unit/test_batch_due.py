"""When the requests that wait in a lane may run: the rule of BATCHSIZE, MINBATCHSIZE and MINBATCHTIMEOUT, with a clock turned by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues_native import ffi, lib

NEVER = 2**63 - 1
SIZES = st.integers(0, 6)
TIMES = st.integers(0, 50)


def due(batchsize: int, minbatchsize: int, timeout_us: int, rows: int, oldest_us: int, now_us: int) -> tuple[bool, int]:
    """Whether the lane is due, and when to look again."""
    look_again = ffi.new("int64_t *")
    limits = {"batchsize": batchsize, "minbatchsize": minbatchsize, "minbatchtimeout_us": timeout_us}
    found = lib.batch_due(ffi.new("BatchLimits *", limits)[0], rows, oldest_us, now_us, look_again)
    return found, look_again[0]


@pytest.mark.parametrize(
    ("limits", "rows", "waited_us", "wanted"),
    [
        ((4, 0, 0), 1, 0, True),  # without MINBATCHSIZE nothing waits
        ((4, 2, 0), 1, 10**12, False),  # without MINBATCHTIMEOUT a request waits for company as long as it takes
        ((4, 2, 0), 2, 0, True),
        ((4, 2, 0), 3, 0, True),
        ((4, 6, 0), 4, 0, True),  # a full batch runs although MINBATCHSIZE is beyond it
        ((4, 2, 1000), 1, 1000, False),  # strictly longer than MINBATCHTIMEOUT
        ((4, 2, 1000), 1, 1001, True),
        ((4, 2, 1000), 2, 0, True),
    ],
)
def test_a_lane_is_due(limits: tuple[int, int, int], rows: int, waited_us: int, wanted: bool) -> None:
    assert due(*limits, rows, 7, 7 + waited_us)[0] == wanted


@given(SIZES, SIZES, TIMES, st.integers(1, 6), TIMES, TIMES)
def test_looking_again_at_the_time_that_it_named_is_neither_early_nor_late(
    batchsize: int, minbatchsize: int, timeout_us: int, rows: int, oldest_us: int, waited_us: int
) -> None:
    now = oldest_us + waited_us
    is_due, look_again = due(batchsize, minbatchsize, timeout_us, rows, oldest_us, now)
    if is_due or look_again == NEVER:
        assert is_due or timeout_us == 0
        return
    assert look_again > now
    assert not due(batchsize, minbatchsize, timeout_us, rows, oldest_us, look_again - 1)[0]
    assert due(batchsize, minbatchsize, timeout_us, rows, oldest_us, look_again)[0]


@given(SIZES, SIZES, TIMES, st.integers(1, 6), TIMES, TIMES)
def test_more_rows_and_more_time_never_make_a_lane_wait(
    batchsize: int, minbatchsize: int, timeout_us: int, rows: int, oldest_us: int, waited_us: int
) -> None:
    now = oldest_us + waited_us
    if due(batchsize, minbatchsize, timeout_us, rows, oldest_us, now)[0]:
        assert due(batchsize, minbatchsize, timeout_us, rows + 1, oldest_us, now)[0]
        assert due(batchsize, minbatchsize, timeout_us, rows, oldest_us, now + 1)[0]
