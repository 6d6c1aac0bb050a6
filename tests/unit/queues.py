"""A run queue turned by hand: programs, jobs, workers and a clock, for the tests of shim/runqueue.c, job.c and timer.c.

    bench = Bench()
    model = bench.model(batch=4)
    first, second = bench.run(model, rows=3), bench.run(model, rows=1)
    batch = bench.take(model)       # batch.jobs == [first, second]
    batch.finish()                  # first.done and second.done

Time is microseconds since the bench was made; TIMEOUT and MINBATCHTIMEOUT are milliseconds, as in the commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from queues_native import ffi, lib

DTYPES = ("FLOAT", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "BOOL", "STRING")
NUMPY = ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "?")
NEVER = 2**63 - 1

_benches = 0


def tensor(value: Any, dtype: str = "FLOAT") -> Any:
    """A C tensor with one reference. A STRING tensor is made of an object array of bytes."""
    number = DTYPES.index(dtype)
    array = np.ascontiguousarray(value, dtype=object if dtype == "STRING" else NUMPY[number])
    array = array.reshape(np.shape(value))
    data = b"".join(item + b"\0" for item in array.flat) if dtype == "STRING" else array.tobytes()
    t = lib.unit_tensor(number, array.ndim, list(array.shape), data, len(data))
    assert t, "no such tensor"
    return t


def shaped(shape: Sequence[int], dtype: str = "FLOAT") -> Any:
    """A C tensor of that shape whose content does not matter; shapes with a zero may be as large as they like."""
    number = DTYPES.index(dtype)
    size = 1 if number == 9 else np.dtype(NUMPY[number]).itemsize
    data = bytes(0 if 0 in shape else int(np.prod(shape, dtype=object)) * size)
    t = lib.unit_tensor(number, len(shape), list(shape), data, len(data))
    assert t, "no such tensor"
    return t


def content(t: Any) -> Any:
    """What a C tensor holds, as an array."""
    shape = tuple(lib.unit_dim(t, i) for i in range(t.ndim))
    data = bytes(ffi.buffer(t.bytes, t.nbytes)) if t.nbytes else b""
    if DTYPES[t.dtype] == "STRING":
        items = data.split(b"\0")[:-1]
        return np.array([*items, None], dtype=object)[:-1].reshape(shape)
    return np.frombuffer(data, NUMPY[t.dtype]).reshape(shape)


class Job:
    """One command in flight."""

    def __init__(self, bench: Bench, pointer: Any, name: str, rows: int) -> None:
        self.bench, self.pointer, self.name, self.rows = bench, pointer, name, rows
        self.endings = 0

    def __repr__(self) -> str:
        return self.name

    timed_out = property(lambda self: lib.unit_flag(self.pointer, 0))
    failed = property(lambda self: lib.unit_flag(self.pointer, 1))
    gone = property(lambda self: lib.unit_flag(self.pointer, 2))

    @property
    def done(self) -> bool:
        """The job was handed to the reply phase, once."""
        self.bench.collect()
        assert self.endings <= 1, "a job reached the reply phase twice"
        return self.endings == 1

    def state(self, op: int = 0) -> int:
        return int(lib.unit_op_state(self.pointer, op))

    def error(self, op: int = 0) -> str | None:
        text = lib.unit_op_error(self.pointer, op)
        return ffi.string(text).decode() if text else None

    def slot(self, slot: int) -> Any:
        t = lib.unit_slot_of(self.pointer, slot)
        return content(t) if t else None

    def disconnect(self) -> None:
        lib.unit_disconnect(self.pointer)


class Batch:
    """Ops that a worker took."""

    def __init__(self, bench: Bench, pointer: Any) -> None:
        self.bench, self.pointer = bench, pointer
        self.rows = pointer.rows
        self.ops = [(bench.job_of(lib.unit_batch_job(pointer, i)), lib.unit_batch_op(pointer, i)) for i in range(pointer.n)]
        self.jobs = [job for job, _ in self.ops]

    def __len__(self) -> int:
        return len(self.ops)

    def gather(self, i: int = 0) -> Any:
        """Input `i` of all ops in one tensor, or the error text."""
        into = ffi.new("Tensor **")
        error = lib.batch_gather(self.pointer, i, into)
        if error:
            return ffi.string(error).decode()
        try:
            return content(into[0])
        finally:
            lib.tensor_unref(into[0])

    def finish(self, outputs: Sequence[Any] | None = None, duration: int = 1) -> None:
        """Ends it with these tensors, whose references it takes; by default with its first input."""
        if outputs is None:
            into = ffi.new("Tensor **")
            assert not lib.batch_gather(self.pointer, 0, into)
            outputs = [into[0]]
        lib.batch_finish(self.pointer, [o if o else ffi.NULL for o in outputs], len(outputs), duration)

    def fail(self, text: str = "ERR no") -> None:
        lib.batch_fail(self.pointer, text.encode())

    def split(self) -> list[Batch]:
        into = ffi.new("Batch *[]", len(self))
        lib.batch_split(self.pointer, into)
        return [Batch(self.bench, b) for b in into]


class Bench:
    """A device of its own with one worker; more devices and workers on request."""

    def __init__(self) -> None:
        global _benches
        _benches += 1
        self.device = f"CPU:{_benches}"
        self.now = 0
        lib.unit_clock(0)
        lib.unit_max_queue(1 << 16)
        self.programs: list[Any] = []
        self.jobs: dict[Any, Job] = {}
        self.workers: dict[str, Any] = {}
        self.look_again = NEVER
        self._live = lib.unit_live()
        self.worker()

    # ---- what there is ----------------------------------------------------------------------------------------------------

    def model(
        self, batch: int = 0, least: int = 0, wait: int = 0, device: str = "", state: int = lib.PROGRAM_OPEN, script: bool = False
    ) -> Any:
        self.worker(device)
        kind = lib.PROGRAM_SCRIPT if script else lib.PROGRAM_MODEL
        p = lib.unit_program((self.device + device).encode(), kind, state, batch, least, wait)
        self.programs.append(p)
        return p

    def worker(self, device: str = "") -> Any:
        """A worker of the device; made, and the device's queue with it, when it is first asked for."""
        if device not in self.workers:  # queues are never freed
            before = lib.unit_live()
            p = lib.unit_program((self.device + device).encode(), 0, lib.PROGRAM_OPEN, 0, 0, 0)
            self.workers[device] = lib.unit_worker(p)
            lib.program_unref(p)
            self._live += lib.unit_live() - before
        return self.workers[device]

    def job_of(self, pointer: Any) -> Job:
        return self.jobs[ffi.cast("Job *", pointer)]

    # ---- what happens -----------------------------------------------------------------------------------------------------

    def at(self, now: int) -> None:
        """Turns the clock. The timer does not look by itself: `expire`."""
        self.now = now
        lib.unit_clock(now)

    def run(self, program: Any, rows: int = 1, shape: Sequence[int] = (2,), dtype: str = "FLOAT", timeout: int = 0, name: str = "") -> Job:
        """A command with one op, one input of `rows` x `shape` and one output."""
        return self.run_on(program, [shaped((rows, *shape), dtype)], timeout=timeout, name=name, rows=rows)

    def run_on(self, program: Any, inputs: Sequence[Any], outputs: int = 1, timeout: int = 0, name: str = "", rows: int = 0) -> Job:
        """A command with one op on these tensors, whose references it takes."""
        n = len(inputs)
        return self.dag([(program, list(range(n)), list(range(n, n + outputs)))], dict(enumerate(inputs)), timeout, name, rows)

    def dag(self, ops: Sequence[Any], slots: dict[int, Any], timeout: int = 0, name: str = "", rows: int = 0, writes: bool = False) -> Job:
        """A command of several ops: (program, slots it reads, slots it fills). `slots` are filled from the start."""
        n_slots = 1 + max([*slots, *(slot for _, reads, fills in ops for slot in (*reads, *fills))], default=0)
        pointer = lib.unit_job(len(ops), n_slots)
        for slot, value in slots.items():
            lib.unit_slot(pointer, slot, value)
        for i, (program, reads, fills) in enumerate(ops):
            lib.unit_op(pointer, i, program, len(reads), list(reads), len(fills), list(fills))
        job = self.jobs[pointer] = Job(self, pointer, name or f"job{len(self.jobs)}", rows)
        lib.unit_run(pointer, timeout, writes)
        return job

    def take(self, program: Any, device: str = "") -> Batch | None:
        """What a worker of the program's device gets now. None: nothing is due, and `look_again` says when."""
        look_again = ffi.new("int64_t *")
        b = lib.unit_take(program, self.worker(device), look_again)
        self.look_again = look_again[0]
        return Batch(self, b) if b else None

    def pop(self, program: Any) -> Batch:
        """The same as a worker does it, which would wait when nothing were due."""
        return Batch(self, lib.unit_pop(program, self.worker()))

    def expire(self) -> int:
        """The timer looks. Returns when it would look again."""
        next_due = ffi.new("int64_t *")
        lib.jobs_expire(self.now, next_due)
        return int(next_due[0])

    def collect(self) -> list[Job]:
        """Jobs that were handed to the reply phase since the last call, in order."""
        ended = []
        while pointer := lib.unit_ended():
            job = self.job_of(pointer)
            job.endings += 1
            ended.append(job)
        return ended

    # ---- the end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything and checks that nothing is left behind: no memory, no reference, no job in a queue."""
        self.collect()
        for job in self.jobs.values():
            assert job.endings == 1, f"{job} did not reach the reply phase"
            lib.unit_free(job.pointer)
        while lib.unit_inbox():
            lib.unit_inbox_pop()
        for p in self.programs:
            assert lib.unit_refs(p) == 1, "somebody still holds a model"
            lib.program_unref(p)
        assert lib.unit_in_flight() == 0
        assert lib.unit_live() == self._live, "memory was not given back"
