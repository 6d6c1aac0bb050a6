"""What a helper sends is checked before it is used: nothing but Garbage comes of nonsense, and what passes lies where it says."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisai_py.isolation import wire
from redisai_py.isolation.breaker import Breaker
from redisai_py.isolation.channel import Channel, Closed
from redisai_py.isolation.memory import SharedMemory
from redisai_py.isolation.wire import Garbage, Row
from redisai_py.tensor import DTYPES
from redisai_py.testing import FakeStrings, FakeTensor

SIZE = 1 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([*DTYPES, "STRING"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
NUMBERS = st.integers(-2, 70) | st.integers(-(1 << 66), 1 << 66) | st.sampled_from([SIZE, SIZE - 1, 1 << 63, (1 << 63) - 1, 1 << 32])
ROWS = st.lists(st.tuples(st.sampled_from([*DTYPES, "STRING", "HALF"]), st.lists(NUMBERS, max_size=4), NUMBERS, NUMBERS), max_size=3)


def lies_inside(message: wire.Message) -> None:
    """Every tensor of the message can be looked at."""
    memory = bytearray(SIZE)
    for row in message.rows:
        if row is None:
            continue
        assert row.offset + row.nbytes <= SIZE
        if row.dtype != "STRING":
            assert np.ndarray(row.dims, DTYPES[row.dtype], memory, row.offset).nbytes == row.nbytes


@given(st.binary(max_size=200))
def test_bytes_are_a_message_or_garbage(body: bytes) -> None:
    with suppress(Garbage):
        lies_inside(wire.decode(b"D", body, SIZE))


@given(JSON)
def test_json_is_a_message_or_garbage(content: Any) -> None:
    with suppress(Garbage):
        lies_inside(wire.decode(b"D", json.dumps(content).encode(), SIZE))


@given(ROWS)
def test_numbers_of_tensors_are_checked(rows: list[Any]) -> None:
    body = json.dumps([[], rows]).encode()
    try:
        lies_inside(wire.decode(b"D", body, SIZE))
    except Garbage:
        return
    for dtype, dims, offset, nbytes in rows:
        assert dtype != "HALF" and min([*dims, offset, nbytes]) >= 0


@given(st.binary(min_size=0, max_size=24))
def test_places_lie_inside(data: bytes) -> None:
    try:
        offset, length = wire.parse_place(data, SIZE)
    except Garbage:
        return
    assert 0 <= offset <= offset + length <= SIZE


def test_a_place_that_wraps_is_garbage() -> None:
    for place in ((1 << 63, 1 << 63), ((1 << 64) - 1, 2), (SIZE, 1), (SIZE + 1, 0)):
        with pytest.raises(Garbage):
            wire.parse_place(struct.pack("<QQ", *place), SIZE)


@given(st.binary(max_size=40), st.lists(st.integers(0, 5), max_size=3))
def test_strings_are_as_many_as_the_shape_says(data: bytes, dims: list[int]) -> None:
    row = Row("STRING", tuple(dims), 0, len(data))
    try:
        array = wire.strings_from(data, row)
    except Garbage:
        return
    assert array.shape == tuple(dims)
    assert wire.strings_to(array.ravel().tolist()) == data


REPLIES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.binary(max_size=20), lambda inner: st.lists(inner, max_size=4)
)


@given(REPLIES)
def test_replies_of_redis_cross_unchanged(reply: Any) -> None:
    assert wire.reply_from(json.loads(json.dumps(wire.reply_to(reply)))) == reply


def test_error_replies_cross() -> None:
    (error,) = wire.reply_from(wire.reply_to([wire.ErrorReply("ERR no")]))
    assert error.error_text == "ERR no"


# ---- channels ---------------------------------------------------------------------------------------------------------------------------


def no_growth(channel: Channel, need: int) -> None:
    raise MemoryError


@pytest.fixture
def ends() -> tuple[Channel, Channel]:
    """Two ends of a channel in one process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    down, up = SharedMemory.of_size(0), SharedMemory.of_size(0)
    return Channel(ours, down, up, no_growth), Channel(theirs, up, down, no_growth)


def test_tensors_cross_whatever_their_form(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    arrays = [np.arange(6).astype(dtype).reshape(2, 3) for dtype in DTYPES.values()]
    arrays += [np.array(5, np.int64), np.zeros((0, 3), np.float32), np.arange(12.0).reshape(3, 4).T, np.arange(10)[::3]]
    ours.send(wire.RUN, [1], [*arrays, None, FakeTensor([[1, 2]], "INT8"), FakeStrings([b"a", b"", b"\xff"], (3, 1))])
    message = theirs.receive()
    assert (message.kind, message.header) == (wire.RUN, [1])
    *found, none, fake, strings = [theirs.array(row) for row in message.rows]
    for array, row in zip(arrays, message.rows, strict=False):
        assert row is not None and row.offset % 64 == 0
        back = theirs.array(row)
        assert back is not None and back.dtype == array.dtype and np.array_equal(back, array)
    assert len(found) == len(arrays) and none is None
    assert fake is not None and fake.tolist() == [[1, 2]]
    assert strings is not None and strings.tolist() == [[b"a"], [b""], [b"\xff"]]


def test_long_headers_travel_in_the_memory(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    header = ["\u00ff" * 50_000, list(range(20_000))]
    ours.send(wire.CALL, header, [np.ones(100)])
    message = theirs.receive()
    assert message.header == header
    array = theirs.array(message.rows[0])
    assert array is not None and array.sum() == 100


def test_a_dtype_without_a_name_sends_nothing(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    with pytest.raises(ValueError, match="ERR a tensor of type e has no RedisAI dtype"):
        ours.send(wire.DONE, [], [np.zeros(2, np.float16)])
    ours.send(wire.DONE, [7])
    assert theirs.receive().header == [7]


def test_closing_wakes_who_waits(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    raised: list[str] = []

    def waits() -> None:
        try:
            ours.receive()
        except Closed:
            raised.append("Closed")

    thread = threading.Thread(target=waits)
    thread.start()
    ours.close()
    thread.join(30)
    assert raised == ["Closed"]
    with pytest.raises(Closed):
        theirs.receive()
    with pytest.raises(Closed):
        theirs.send(wire.DONE, [])


# ---- memory -----------------------------------------------------------------------------------------------------------------------------


def test_nobody_can_take_shared_memory_away() -> None:
    memory = SharedMemory.of_size(3 << 20)
    assert memory.size == 4 << 20
    for size in (0, memory.size - 1, memory.size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    memory.close_descriptor()


def test_memory_that_could_shrink_is_not_mapped() -> None:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    with pytest.raises(ValueError, match="shrink"):
        SharedMemory(descriptor)
    os.close(descriptor)


def test_there_is_an_end_to_it() -> None:
    with pytest.raises(MemoryError):
        SharedMemory.of_size(1 << 50)


def test_what_a_large_run_used_is_given_back() -> None:
    memory = SharedMemory.of_size(100 << 20)
    for offset in range(0, memory.size, 1 << 20):
        memory.map[offset] = 1
    used = os.fstat(memory.fd).st_blocks
    memory.give_back()
    assert os.fstat(memory.fd).st_blocks < used
    assert (memory.map[0], memory.map[memory.size - (1 << 20)]) == (1, 0)
    memory.close_descriptor()


# ---- when to leave something alone ------------------------------------------------------------------------------------------------------


def test_the_breaker_opens_after_three_failures_for_longer_and_longer() -> None:
    breaker = Breaker()
    waits = []
    for _ in range(12):
        breaker.failed(100)
        waits.append(breaker.wait(100))
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert (breaker.wait(159), breaker.wait(160), breaker.failures) == (1, 0, 12)
    breaker.succeeded()
    assert (breaker.wait(100), breaker.failures) == (0, 0)
