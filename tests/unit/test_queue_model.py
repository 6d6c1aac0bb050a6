"""Run queues against a model of them in Python: whatever happens in whatever order, the same requests run, together and in turn.

The model is the specification in its plainest form: a list of what waits, searched from the start each time. It knows nothing of lanes,
lists and hashes. What it says is due must be what a worker gets, and when nothing is due both agree on when to look again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from queues import NEVER, Batch, Bench, Job
from queues_native import ffi, lib


@dataclass
class Model:
    """A model and its batching rule: rows, rows, milliseconds."""

    pointer: Any
    batch: int
    least: int
    wait: int
    dropped: bool = False
    waiting: list[Entry] = field(default_factory=list)
    overtaken: dict[int, int] = field(default_factory=dict)  # by other models, while something of this one was due


@dataclass
class Entry:
    """A request in the queue."""

    job: Job
    kind: tuple[Any, ...]  # requests of one kind may share a batch
    rows: int
    queued: int
    deadline: int


def batchable(model: Model, rows: int) -> bool:
    return 0 < rows < model.batch


def lanes(model: Model) -> list[list[Entry]]:
    found: dict[Any, list[Entry]] = {}
    for entry in model.waiting:
        found.setdefault(entry.kind, []).append(entry)
    return list(found.values())


def due_at(model: Model, lane: list[Entry]) -> int:
    """The time from which the lane may run."""
    rows = sum(entry.rows for entry in lane)
    if lane[0].kind == ("alone",) or model.dropped or rows >= model.batch or rows >= model.least:
        return 0
    return lane[0].queued + model.wait * 1000 + 1 if model.wait else NEVER


def first_batch(model: Model, lane: list[Entry]) -> list[Job]:
    if lane[0].kind == ("alone",):
        return [lane[0].job]
    taken: list[Entry] = []
    while len(taken) < len(lane) and sum(entry.rows for entry in taken) < model.batch:
        taken.append(lane[len(taken)])
    return [entry.job for entry in taken]


class Queue(RuleBasedStateMachine):
    @initialize(limits=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=4))
    def start(self, limits: list[tuple[int, int, int]]) -> None:
        self.bench = Bench()
        self.models = [Model(self.bench.model(*numbers), *numbers) for numbers in limits]
        self.running: list[Batch] = []
        self.gone = 0

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for model in self.models:
            lib.unit_drop(model.pointer, True)
        for batch in self.running:
            batch.finish()
        while batch := self.bench.take(self.models[0].pointer):
            batch.finish()
        self.bench.close()

    # ---- what happens -----------------------------------------------------------------------------------------------------

    @rule(
        which=st.integers(0, 3),
        rows=st.integers(0, 7),
        width=st.integers(1, 2),
        dtype=st.sampled_from(["FLOAT", "INT32"]),
        timeout=st.sampled_from([0, 0, 0, 1, 4]),
    )
    def request(self, which: int, rows: int, width: int, dtype: str, timeout: int) -> None:
        model = self.models[which % len(self.models)]
        job = self.bench.run(model.pointer, rows=rows, shape=(width,), dtype=dtype, timeout=timeout)
        kind = (dtype, width) if batchable(model, rows) else ("alone",)
        deadline = self.bench.now + timeout * 1000 if timeout else NEVER
        model.waiting.append(Entry(job, kind, rows, self.bench.now, deadline))

    @rule()
    def work(self) -> None:
        due = [model for model in self.models if any(due_at(model, lane) <= self.bench.now for lane in lanes(model))]
        batch = self.bench.take(self.models[0].pointer)
        if batch is None:
            assert not due
            assert self.bench.look_again == min((due_at(m, lane) for m in self.models for lane in lanes(m)), default=NEVER)
            return
        self.running.append(batch)
        served = next(m for m in self.models if m.pointer == batch.pointer.program)
        lane = next(lane for lane in lanes(served) if lane[0].job is batch.jobs[0])
        assert due_at(served, lane) <= self.bench.now
        assert batch.jobs == first_batch(served, lane)
        assert batch.rows == (0 if lane[0].kind == ("alone",) and lane[0].rows == 0 else sum(job.rows for job in batch.jobs))
        served.waiting = [entry for entry in served.waiting if entry.job not in batch.jobs]
        self.no_model_is_passed_over(served, due)

    def no_model_is_passed_over(self, served: Model, due: list[Model]) -> None:
        """While something of a model is due, each other model has one turn at most."""
        served.overtaken.clear()
        for model in self.models:
            if model not in due:
                model.overtaken.clear()
            elif model is not served:
                model.overtaken[id(served)] = model.overtaken.get(id(served), 0) + 1
                assert model.overtaken[id(served)] == 1

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), outcome=st.sampled_from(["finish", "finish", "fail", "split"]))
    def answer(self, which: int, outcome: str) -> None:
        batch = self.running.pop(which % len(self.running))
        if outcome == "finish":
            batch.finish()
        elif outcome == "fail":
            batch.fail()
        else:
            for part in batch.split():
                part.finish()
        assert all(job.done for job in batch.jobs)

    @rule(us=st.one_of(st.integers(1, 3000), st.just(1), st.just(1000)))
    def time_passes(self, us: int) -> None:
        self.bench.at(self.bench.now + us)

    @rule()
    def timer_looks(self) -> None:
        again = self.bench.expire()
        for model in self.models:
            late = [entry for entry in model.waiting if self.bench.now > entry.deadline]
            assert all(entry.job.done and entry.job.timed_out for entry in late)
            self.remove(model, late)
        assert again <= min((entry.deadline + 1 for m in self.models for entry in m.waiting if entry.deadline != NEVER), default=NEVER)

    @precondition(lambda self: any(model.waiting for model in self.models))
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([m for m in self.models if m.waiting]))
        entry = data.draw(st.sampled_from(model.waiting))
        entry.job.disconnect()
        self.remove(model, [entry])
        assert entry.job.done and entry.job.gone

    def remove(self, model: Model, entries: list[Entry]) -> None:
        """A model whose requests left may have nothing due now, and then its turns are counted from the next."""
        model.waiting = [entry for entry in model.waiting if entry not in entries]
        if entries:
            model.overtaken.clear()

    @rule(which=st.integers(0, 3))
    def model_is_deleted_or_comes_back(self, which: int) -> None:
        """It comes back when nothing waits: a lane that a worker saw released stays so, and who looked when is not the model's to know."""
        model = self.models[which % len(self.models)]
        if not model.dropped or not model.waiting:
            model.dropped = not model.dropped
            lib.unit_drop(model.pointer, model.dropped)

    # ---- what stays true ----------------------------------------------------------------------------------------------------

    @invariant()
    def the_queue_is_as_long_as_what_waits(self) -> None:
        if hasattr(self, "bench"):
            assert lib.unit_queue_length(self.models[0].pointer) == sum(len(model.waiting) for model in self.models)


Queue.TestCase.settings = settings(max_examples=int(os.environ.get("UNIT_EXAMPLES", "100")), stateful_step_count=60, deadline=None)
test_any_history = Queue.TestCase


# ---- the timer's heap -----------------------------------------------------------------------------------------------------------------


class Heap(RuleBasedStateMachine):
    """Deadlines in a heap against a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Any] = []

    def teardown(self) -> None:
        for job in self.jobs:
            lib.heap_remove(job)
            lib.job_free(job)
        assert lib.heap_first() == ffi.NULL

    @rule(deadline=st.integers(1, 20))
    def push(self, deadline: int) -> None:
        self.jobs.append(lib.unit_timed(deadline))
        lib.heap_push(self.jobs[-1])

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        lib.heap_remove(job)
        assert lib.unit_heap_at(job) == -1
        lib.heap_remove(job)  # a second time does nothing
        self.jobs.remove(job)
        lib.job_free(job)

    @invariant()
    def the_first_is_the_earliest(self) -> None:
        if self.jobs:
            assert lib.unit_deadline(lib.heap_first()) == min(map(lib.unit_deadline, self.jobs))


Heap.TestCase.settings = settings(max_examples=int(os.environ.get("UNIT_EXAMPLES", "30")), stateful_step_count=40, deadline=None)
test_deadlines = Heap.TestCase
