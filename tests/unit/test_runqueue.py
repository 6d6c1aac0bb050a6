"""Run queues: who runs when, and with whom. The clock is turned by hand and nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues import DTYPES, NEVER, NUMPY, Batch, Bench, Job, shaped, tensor
from queues_native import ffi, lib

MS = 1000


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def served(bench: Bench, program: Any) -> list[list[Job]]:
    """Everything that is due, in the order in which one worker serves it."""
    batches = []
    while batch := bench.take(program):
        batches.append(batch.jobs)
        batch.finish()
    return batches


def take(bench: Bench, program: Any) -> Batch:
    batch = bench.take(program)
    assert batch, "nothing is due"
    return batch


# ---- which ops share a batch ------------------------------------------------------------------------------------------------------------


def test_requests_that_wait_are_taken_together(bench: Bench) -> None:
    model = bench.model(batch=10)
    jobs = [bench.run(model) for _ in range(7)]
    assert served(bench, model) == [jobs]


def test_without_batchsize_each_runs_alone(bench: Bench) -> None:
    model = bench.model()
    jobs = [bench.run(model) for _ in range(3)]
    assert served(bench, model) == [[job] for job in jobs]


def test_a_batch_may_pass_batchsize_because_the_check_comes_after_adding(bench: Bench) -> None:
    model = bench.model(batch=4)
    jobs = [bench.run(model, rows=3) for _ in range(3)]
    batch = take(bench, model)
    assert (batch.jobs, batch.rows) == (jobs[:2], 6)
    batch.finish()
    assert served(bench, model) == [jobs[2:]]


def test_a_batch_stops_at_batchsize(bench: Bench) -> None:
    model = bench.model(batch=4)
    jobs = [bench.run(model, rows=2) for _ in range(5)]
    assert served(bench, model) == [jobs[:2], jobs[2:4], jobs[4:]]


def test_what_fills_a_batch_by_itself_runs_alone_and_at_once(bench: Bench) -> None:
    model = bench.model(batch=4, least=3)
    small, full, larger = bench.run(model, rows=1), bench.run(model, rows=4), bench.run(model, rows=9)
    assert served(bench, model) == [[full], [larger]]
    bench.run(model, rows=2)
    assert served(bench, model)[0][0] is small


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "DOUBLE"},
        {"dtype": "INT32"},  # the same size
        {"shape": (3,)},
        {"shape": ()},
        {"shape": (2, 1)},
        {"shape": (1, 2)},
        {"shape": (0,)},
    ],
)
def test_other_dtypes_and_shapes_are_never_mixed(bench: Bench, other: dict[str, Any]) -> None:
    model = bench.model(batch=100)
    ours, theirs = [], []
    for _ in range(3):
        ours.append(bench.run(model))
        theirs.append(bench.run(model, **other))
    assert served(bench, model) == [ours, theirs]


def test_shapes_that_hash_alike_are_never_mixed(bench: Bench) -> None:
    """Clients choose the shapes, so they can choose some that collide: what the first number changes, the second undoes."""
    model = bench.model(batch=100)
    start = ((1 ^ model.id) * 0x9E3779B97F4A7C15 ^ (1 << 32 | 1)) * 0x9E3779B97F4A7C15 % 2**64
    start = (start ^ (2 << 8 | 4)) * 0x9E3779B97F4A7C15 % 2**64  # INT8, four dimensions

    def after(first: int) -> int:
        state = ((start ^ start >> 32) ^ first) * 0x9E3779B97F4A7C15 % 2**64
        return state ^ state >> 32

    pairs = ((a, b, after(a) ^ 1 ^ after(b)) for a in range(1, 99) for b in range(1, 99) if a != b)
    a, b, second = next(pair for pair in pairs if 0 < pair[2] * pair[1] < 2**63)
    one, other = (bench.run(model, shape=shape, dtype="INT8") for shape in ((a, 1, 0), (b, second, 0)))
    assert lib.unit_lane_hash(one.pointer) == lib.unit_lane_hash(other.pointer)
    for job in (one, other):
        batch = take(bench, model)
        assert batch.jobs == [job]
        batch.finish()


def test_every_input_counts(bench: Bench) -> None:
    model = bench.model(batch=100)
    same = [bench.run_on(model, [shaped((2, 3)), shaped((2, 5), "INT8")]) for _ in range(2)]
    other_shape = bench.run_on(model, [shaped((2, 3)), shaped((2, 6), "INT8")])
    other_dtype = bench.run_on(model, [shaped((2, 3)), shaped((2, 5), "UINT8")])
    fewer = bench.run_on(model, [shaped((2, 3))])
    more_outputs = bench.run_on(model, [shaped((2, 3)), shaped((2, 5), "INT8")], outputs=2)
    for batch in (same, [other_shape], [other_dtype], [fewer], [more_outputs]):
        taken = take(bench, model)
        assert taken.jobs == batch
        taken.fail()


def test_inputs_that_disagree_on_rows_or_have_none_run_alone(bench: Bench) -> None:
    model = bench.model(batch=100, least=50)
    jobs = [
        bench.run_on(model, [shaped((2, 3)), shaped((3, 3))]),
        bench.run_on(model, [shaped(())]),
        bench.run_on(model, [shaped((2, 3)), shaped(())]),
        bench.run_on(model, [shaped(()), shaped((2, 3))]),
        bench.run(model, rows=0),
        bench.run_on(model, []),
    ]
    for job in jobs:
        batch = take(bench, model)
        assert (batch.jobs, batch.rows) == ([job], 0)
        batch.fail()


def test_models_are_never_mixed(bench: Bench) -> None:
    old, new = bench.model(batch=100), bench.model(batch=100)
    ours = [bench.run(old), bench.run(old)]
    theirs = [bench.run(new), bench.run(new)]
    assert served(bench, old) == [ours, theirs]


def test_scripts_run_alone(bench: Bench) -> None:
    script = bench.model(batch=100, script=True)
    jobs = [bench.run(script) for _ in range(3)]
    assert served(bench, script) == [[job] for job in jobs]


def test_rows_beyond_counting_run_alone(bench: Bench) -> None:
    """Two such shapes (of no bytes) would overflow the sum of rows."""
    model = bench.model(batch=2**63 - 1)
    jobs = [bench.run(model, rows=2**62, shape=(0,), dtype="INT8") for _ in range(3)]
    for job in jobs:
        batch = take(bench, model)
        assert batch.jobs == [job]
        batch.fail()


def test_devices_are_queues_of_their_own(bench: Bench) -> None:
    here, there = bench.model(batch=100), bench.model(batch=100, device="x")
    ours, theirs = bench.run(here), bench.run(there)
    assert served(bench, here) == [[ours]]
    batch = bench.take(there, "x")
    assert batch and batch.jobs == [theirs]
    batch.finish()


# ---- waiting for company ----------------------------------------------------------------------------------------------------------------


def test_minbatchsize_waits_until_there_are_rows_enough(bench: Bench) -> None:
    model = bench.model(batch=10, least=4)
    jobs = [bench.run(model, rows=2)]
    assert bench.take(model) is None
    assert bench.look_again == NEVER
    bench.at(10**12)
    assert bench.take(model) is None
    jobs.append(bench.run(model, rows=2))
    assert served(bench, model) == [jobs]


def test_minbatchtimeout_ends_the_wait_of_the_oldest(bench: Bench) -> None:
    model = bench.model(batch=10, least=4, wait=5)
    bench.at(100)
    first = bench.run(model)
    bench.at(3000)
    second = bench.run(model)
    assert bench.take(model) is None
    assert bench.look_again == 100 + 5 * MS + 1
    bench.at(bench.look_again - 1)
    assert bench.take(model) is None
    bench.at(bench.look_again)
    assert served(bench, model) == [[first, second]]


def test_what_a_batch_left_over_waits_from_its_own_arrival(bench: Bench) -> None:
    model = bench.model(batch=4, least=3, wait=5)
    jobs = [bench.run(model, rows=2), bench.run(model, rows=2)]
    bench.at(1000)
    late = bench.run(model, rows=1)
    assert take_and_finish(bench, model) == jobs
    assert bench.take(model) is None
    assert bench.look_again == 1000 + 5 * MS + 1
    bench.at(bench.look_again)
    assert served(bench, model) == [[late]]


def take_and_finish(bench: Bench, model: Any) -> list[Job]:
    batch = take(bench, model)
    batch.finish()
    return batch.jobs


def test_the_earliest_end_of_a_wait_counts(bench: Bench) -> None:
    slow, fast, patient = bench.model(batch=9, least=9, wait=50), bench.model(batch=9, least=9, wait=5), bench.model(batch=9, least=9)
    jobs = [bench.run(slow), bench.run(fast), bench.run(patient)]
    bench.at(1)
    other = bench.run(fast, shape=(3,))
    assert bench.take(slow) is None
    assert bench.look_again == 5 * MS + 1
    bench.at(5 * MS + 1)
    assert served(bench, slow) == [[jobs[1]]]
    assert bench.look_again == 5 * MS + 2
    bench.at(5 * MS + 2)
    assert served(bench, slow) == [[other]]
    assert bench.look_again == 50 * MS + 1
    bench.at(50 * MS + 1)
    assert served(bench, slow) == [[jobs[0]]]
    assert bench.look_again == NEVER
    jobs[2].disconnect()


def test_a_timeout_so_long_that_it_overflows_is_as_good_as_none(bench: Bench) -> None:
    model = bench.model(batch=9, least=9, wait=2**63 - 1)
    bench.at(10**15)
    job = bench.run(model)
    assert bench.take(model) is None
    assert bench.look_again > 2**61
    job.disconnect()


def test_a_dropped_model_waits_for_nobody(bench: Bench) -> None:
    model = bench.model(batch=9, least=9)
    jobs = [bench.run(model), bench.run(model), bench.run(model, shape=(3,))]
    assert bench.take(model) is None
    lib.unit_drop(model, True)
    assert served(bench, model) == [jobs[:2], jobs[2:]]


def test_a_model_that_comes_back_waits_again(bench: Bench) -> None:
    """RENAME takes a value from one name and gives it to another."""
    model = bench.model(batch=9, least=9)
    lib.unit_drop(model, True)
    lib.unit_drop(model, False)
    job = bench.run(model)
    assert bench.take(model) is None
    job.disconnect()


# ---- leaving the queue ------------------------------------------------------------------------------------------------------------------


def test_who_leaves_takes_his_rows_along(bench: Bench) -> None:
    model = bench.model(batch=10, least=4)
    jobs = [bench.run(model, rows=2) for _ in range(2)]
    jobs[0].disconnect()
    assert jobs[0].done
    assert bench.take(model) is None
    jobs.append(bench.run(model, rows=2))
    assert served(bench, model) == [jobs[1:]]


def test_when_the_oldest_leaves_the_next_one_s_wait_counts(bench: Bench) -> None:
    model = bench.model(batch=10, least=4, wait=5)
    first = bench.run(model)
    bench.at(2000)
    second = bench.run(model)
    other = bench.run(model, shape=(3,))
    first.disconnect()
    assert bench.take(model) is None
    assert bench.look_again == 2000 + 5 * MS + 1
    second.disconnect()
    other.disconnect()
    assert bench.take(model) is None
    assert bench.look_again == NEVER


def test_order_survives_those_who_leave(bench: Bench) -> None:
    model = bench.model(batch=100)
    jobs = [bench.run(model) for _ in range(6)]
    for job in (jobs[0], jobs[3], jobs[5]):
        job.disconnect()
    assert served(bench, model) == [[jobs[1], jobs[2], jobs[4]]]
    assert lib.unit_queue_length(model) == 0


def test_a_lane_that_lost_ops_keeps_its_turn(bench: Bench) -> None:
    model = bench.model()
    a, b = bench.run(model), bench.run(model)
    other = bench.model()
    c = bench.run(other)
    a.disconnect()
    assert served(bench, model) == [[b], [c]]


# ---- turns ------------------------------------------------------------------------------------------------------------------------------


def test_a_hot_model_cannot_starve_another(bench: Bench) -> None:
    hot, cold = bench.model(), bench.model()
    flood = [bench.run(hot) for _ in range(100)]
    lonely = bench.run(cold)
    batches = served(bench, hot)
    assert batches.index([lonely]) == 1
    assert [b for b in batches if b != [lonely]] == [[job] for job in flood]


def test_a_model_called_with_many_shapes_has_one_turn_like_any_other(bench: Bench) -> None:
    hot, cold = bench.model(batch=8), bench.model()
    for width in range(50):
        bench.run(hot, shape=(width + 1,))
    lonely = [bench.run(cold) for _ in range(3)]
    order = served(bench, hot)
    assert [order.index([job]) for job in lonely] == [1, 3, 5]


def test_three_models_take_turns(bench: Bench) -> None:
    models = [bench.model() for _ in range(3)]
    jobs = [[bench.run(model, name=f"{name}{i}") for i in range(4)] for name, model in zip("abc", models, strict=True)]
    order = [batch[0].name for batch in served(bench, models[0])]
    assert order == [f"{name}{i}" for i in range(4) for name in "abc"]
    assert len(jobs) == 3


def test_shapes_of_one_model_take_turns(bench: Bench) -> None:
    model = bench.model(batch=2)
    wide = [bench.run(model, shape=(9,)) for _ in range(6)]
    narrow = [bench.run(model, shape=(1,)) for _ in range(3)]
    assert served(bench, model) == [wide[:2], narrow[:2], wide[2:4], narrow[2:], wide[4:]]


def test_whoever_waited_for_company_long_enough_is_not_starved_by_full_batches(bench: Bench) -> None:
    model = bench.model(batch=2, least=2, wait=5)
    lonely = bench.run(model, shape=(1,))
    crowd = [bench.run(model, shape=(9,)) for _ in range(10)]
    assert take_and_finish(bench, model) == crowd[:2]
    bench.at(5 * MS + 1)
    assert served(bench, model).index([lonely]) == 1


def test_models_that_come_and_go_keep_nobody_waiting(bench: Bench) -> None:
    """A model whose only request is served and that comes back at once queues at the end of the round."""
    hot, cold = bench.model(), bench.model()
    bench.run(hot)
    lonely = [bench.run(cold) for _ in range(5)]
    order = []
    for _ in range(10):
        batch = take(bench, hot)
        order.append(batch.jobs[0])
        batch.finish()
        if batch.jobs[0] not in lonely:
            bench.run(hot)
    assert [job in lonely for job in order] == [False, True] * 5
    served(bench, hot)


# ---- limits -----------------------------------------------------------------------------------------------------------------------------


def test_the_queue_is_full_at_max_queue(bench: Bench) -> None:
    model = bench.model()
    lib.unit_max_queue(3)
    jobs = []
    for n in range(3):
        assert (lib.unit_queue_length(model), lib.unit_queue_full(model)) == (n, False)
        jobs.append(bench.run(model))
    assert lib.unit_queue_full(model)
    jobs[1].disconnect()
    assert not lib.unit_queue_full(model)
    served(bench, model)


def test_jobs_that_wait_for_a_model_to_open_count_as_well(bench: Bench) -> None:
    model = bench.model(state=lib.PROGRAM_UNOPENED)
    lib.unit_max_queue(3)
    jobs = [bench.run(model, timeout=timeout) for timeout in (0, 1, 0)]
    assert (lib.unit_queue_length(model), lib.unit_queue_waiting(model), lib.unit_queue_full(model)) == (0, 3, True)
    jobs[0].disconnect()
    assert (lib.unit_queue_waiting(model), lib.unit_queue_full(model)) == (2, False)
    bench.at(1 * MS + 1)
    bench.expire()
    assert jobs[1].timed_out and lib.unit_queue_waiting(model) == 1
    lib.unit_opened(model, ffi.NULL)
    assert (lib.unit_queue_length(model), lib.unit_queue_waiting(model)) == (1, 0)
    assert served(bench, model) == [jobs[2:]]


# ---- TIMEOUT ----------------------------------------------------------------------------------------------------------------------------


def test_timeout_releases_a_request_although_no_worker_comes(bench: Bench) -> None:
    model = bench.model()
    bench.at(500)
    job, patient = bench.run(model, timeout=5), bench.run(model)
    bench.at(500 + 5 * MS)
    assert bench.expire() == 500 + 5 * MS + 1  # strictly longer than TIMEOUT
    assert not job.done
    bench.at(500 + 5 * MS + 1)
    assert bench.expire() == NEVER
    assert job.done and job.timed_out and job.state() == lib.OP_WAITING
    assert served(bench, model) == [[patient]]


def test_timeout_ends_the_wait_for_company(bench: Bench) -> None:
    model = bench.model(batch=9, least=9)
    job, patient = bench.run(model, timeout=5), bench.run(model)
    bench.at(5 * MS + 1)
    bench.expire()
    assert job.done and job.timed_out and not patient.done
    patient.disconnect()


def test_a_worker_starts_nothing_whose_timeout_has_passed(bench: Bench) -> None:
    """After a pause of the whole process the worker may look before the timer does."""
    model = bench.model(batch=9)
    late, patient = bench.run(model, timeout=5), bench.run(model)
    bench.at(10**9)
    assert not lib.unit_try(model, bench.worker())  # first they are to be ended
    batch = bench.pop(model)
    assert batch.jobs == [patient]
    assert late.done and late.timed_out
    batch.finish()


def test_a_run_that_started_finishes(bench: Bench) -> None:
    model = bench.model()
    job = bench.run(model, timeout=5)
    batch = take(bench, model)
    bench.at(10**9)
    bench.expire()
    assert not job.done
    batch.finish()
    assert job.done and not job.timed_out and job.state() == lib.OP_DONE


def test_a_later_op_is_not_started_after_the_timeout(bench: Bench) -> None:
    model = bench.model()
    job = bench.dag([(model, [0], [1]), (model, [1], [2])], {0: shaped((1, 2))}, timeout=5)
    batch = take(bench, model)
    bench.at(5 * MS + 1)
    bench.expire()
    batch.finish()
    assert job.done and job.timed_out
    assert [job.state(i) for i in range(2)] == [lib.OP_DONE, lib.OP_WAITING]
    assert bench.take(model) is None


def test_a_timeout_beyond_the_clock_is_none(bench: Bench) -> None:
    model = bench.model()
    bench.at(10**15)
    bench.run(model, timeout=2**63 - 1)
    assert bench.expire() == NEVER
    served(bench, model)


# ---- MODEL_EXECUTION_TIMEOUT -------------------------------------------------------------------------------------------------------------

SECOND = 1_000_000  # the limit is five


def overdue(model: Any) -> Any:
    """The run of the model of which the watchdog is told now."""
    run = ffi.new("Overdue *")
    assert lib.unit_overdue(run) == model.id
    return run


def test_a_run_is_overdue_when_it_has_lasted_longer_than_the_limit(bench: Bench) -> None:
    first, second = bench.model(), bench.model(device="x")
    jobs = [bench.run(first), bench.run(second)]
    bench.at(7 * SECOND)  # in the queue: does not count
    one = take(bench, first)
    bench.at(8 * SECOND)
    other = bench.take(second, "x")
    assert other
    bench.at(12 * SECOND + 1)
    assert lib.watch_still_runs(overdue(first))
    bench.at(13 * SECOND + 1)
    assert lib.watch_still_runs(overdue(second))  # of the first one it has been told
    for batch in (one, other):
        batch.finish()
    assert bench.collect() == jobs


def test_the_next_run_is_not_ended_in_place_of_one_that_is_over(bench: Bench) -> None:
    model = bench.model()
    bench.run(model)
    bench.at(1 * SECOND)
    batch = take(bench, model)
    bench.at(6 * SECOND + 1)
    run = overdue(model)
    batch.finish()
    assert not lib.watch_still_runs(run)
    bench.run(model)
    batch = take(bench, model)
    assert not lib.watch_still_runs(run)
    batch.finish()


def test_a_retried_member_has_the_whole_limit(bench: Bench) -> None:
    model = bench.model(batch=10)
    bench.run(model)
    bench.run(model)
    bench.at(1 * SECOND)
    batch = take(bench, model)
    bench.at(4 * SECOND)
    one, two = batch.split()
    lib.batch_restart(one.pointer)
    bench.at(8 * SECOND)
    one.finish()
    lib.batch_restart(two.pointer)
    bench.at(13 * SECOND + 1)
    assert overdue(model).started_us == 8 * SECOND
    two.finish()


# ---- what becomes of a batch ------------------------------------------------------------------------------------------------------------


def stats(program: Any) -> dict[str, int]:
    names = ("calls", "errors", "duration", "samples", "batches", "requests", "waited")
    return {name: lib.unit_stat(program, i) for i, name in enumerate(names)}


def sizes_seen(program: Any) -> dict[int, int]:
    return {2**i: n for i in range(16) if (n := lib.unit_stat(program, 7 + i))}


def test_each_gets_its_own_rows_and_the_whole_duration(bench: Bench) -> None:
    model = bench.model(batch=100)
    bench.at(10)
    jobs = [bench.run_on(model, [tensor(np.full((n, 2), n))]) for n in (1, 3, 2)]
    bench.at(25)
    batch = take(bench, model)
    assert batch.gather().tolist() == [[1, 1], *[[3, 3]] * 3, *[[2, 2]] * 2]
    batch.finish(duration=7)
    assert bench.collect() == jobs
    assert [job.slot(1).tolist() for job in jobs] == [[[n, n]] * n for n in (1, 3, 2)]
    assert stats(model) == {"calls": 3, "errors": 0, "duration": 21, "samples": 6, "batches": 1, "requests": 3, "waited": 45}
    assert sizes_seen(model) == {2: 1}


def test_an_error_of_the_whole_batch_goes_to_every_member(bench: Bench) -> None:
    model = bench.model(batch=100)
    jobs = [bench.run(model) for _ in range(3)]
    take(bench, model).fail("ERR no")
    assert [(job.failed, job.error(), job.slot(1)) for job in jobs] == [(True, "ERR no", None)] * 3
    assert stats(model) | {"waited": 0} == {"calls": 3, "errors": 3, "duration": 0, "samples": 0, "batches": 1, "requests": 3, "waited": 0}


def test_members_retried_one_by_one_count_one_call_each(bench: Bench) -> None:
    model = bench.model(batch=100)
    jobs = [bench.run(model, rows=n) for n in (1, 2, 3)]
    parts = take(bench, model).split()
    assert [(part.jobs, part.rows) for part in parts] == [([job], job.rows) for job in jobs]
    parts[0].finish(duration=5)
    parts[1].fail("ERR bad")
    parts[2].finish(duration=6)
    assert bench.collect() == jobs
    assert [job.error() for job in jobs] == [None, "ERR bad", None]
    assert stats(model) | {"waited": 0} == {"calls": 3, "errors": 1, "duration": 11, "samples": 4, "batches": 1, "requests": 3, "waited": 0}


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (0, 2), ()])
def test_another_number_of_rows_is_never_cut_up(bench: Bench, shape: tuple[int, ...]) -> None:
    model = bench.model(batch=100)
    jobs = [bench.run(model), bench.run(model, rows=2)]
    take(bench, model).finish([shaped(shape)])
    assert [job.error() for job in jobs] == ["ERR Model did not generate the expected batch size"] * 2


def test_one_request_keeps_whatever_its_model_returns(bench: Bench) -> None:
    model = bench.model(batch=100)
    job = bench.run(model, rows=2)
    take(bench, model).finish([tensor(np.arange(5.0))])
    assert job.slot(1).tolist() == [0, 1, 2, 3, 4]
    assert stats(model)["samples"] == 5


def test_missing_and_surplus_outputs_are_nobody_s(bench: Bench) -> None:
    model = bench.model(batch=100)
    jobs = [bench.run_on(model, [shaped((1, 2))], outputs=2) for _ in range(2)]
    take(bench, model).finish([None, shaped((2, 3)), shaped((2, 4))])
    assert [(job.slot(1), job.slot(2).shape, job.failed) for job in jobs] == [(None, (1, 3), False)] * 2


def test_a_batch_too_large_for_a_tensor_is_an_error_not_a_crash(bench: Bench) -> None:
    model = bench.model(batch=2**40)
    jobs = [bench.run(model, rows=1 << 20, shape=(3,)) for _ in range(2)]  # 12 MiB each, 16 MiB allowed
    batch = take(bench, model)
    assert isinstance(batch.gather(), str)
    for part in batch.split():
        part.finish()
    assert [job.failed for job in jobs] == [False, False]


elements = {
    "STRING": st.binary(max_size=5).map(lambda b: b.replace(b"\0", b"-")),
    **dict.fromkeys(("FLOAT", "DOUBLE"), st.floats(width=32)),
    "BOOL": st.booleans(),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, list[Any]]:
    dtype = draw(st.sampled_from(DTYPES))
    rest = draw(st.lists(st.integers(0, 3), max_size=3))
    item = elements.get(dtype, st.integers(0, 100))
    values = []
    for rows in draw(st.lists(st.integers(1, 4), min_size=2, max_size=6)):
        n = rows * int(np.prod(rest, dtype=int))
        array = np.empty(n, dtype=object if dtype == "STRING" else NUMPY[DTYPES.index(dtype)])
        array[:] = draw(st.lists(item, min_size=n, max_size=n))
        values.append(array.reshape(rows, *rest))
    return dtype, values


@given(requests())
def test_gathering_and_scattering_change_nothing(request_: tuple[str, list[Any]]) -> None:
    dtype, values = request_
    bench = Bench()
    model = bench.model(batch=1000)
    jobs = [bench.run_on(model, [tensor(value, dtype)]) for value in values]
    batch = take(bench, model)
    assert batch.jobs == jobs
    together = batch.gather()
    assert together.shape == (sum(len(v) for v in values), *values[0].shape[1:])
    assert together.tobytes() == np.concatenate(values).tobytes() if dtype != "STRING" else (together == np.concatenate(values)).all()
    batch.finish()
    for job, value in zip(jobs, values, strict=True):
        mine = job.slot(1)
        assert mine.shape == value.shape
        assert (mine == value).all() if dtype == "STRING" else mine.tobytes() == value.tobytes()
    bench.close()


# ---- DAGs -------------------------------------------------------------------------------------------------------------------------------


def test_ops_of_dags_and_single_requests_share_batches(bench: Bench) -> None:
    model = bench.model(batch=100)
    single = bench.run(model)
    dag = bench.dag([(model, [0], [1]), (model, [1], [2])], {0: shaped((1, 2))})
    first = take(bench, model)
    assert first.jobs == [single, dag]
    another = bench.run(model)
    first.finish()
    second = take(bench, model)
    assert second.ops == [(another, 0), (dag, 1)]
    second.finish()
    assert dag.done and dag.slot(2) is not None


def test_writes_that_are_paused_hold_back_finished_jobs(bench: Bench) -> None:
    model = bench.model()
    writers = [bench.dag([(model, [0], [1])], {0: shaped((1, 2))}, writes=True) for _ in range(3)]
    reader = bench.dag([(model, [0], [1])], {0: shaped((1, 2))})
    lib.unit_pause(True)
    served(bench, model)
    assert reader.done and not any(writer.done for writer in writers)
    lib.unit_pause(False)
    assert all(writer.done for writer in writers)
