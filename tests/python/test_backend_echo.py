"""The echo backend and the fakes: tests of the server rest on them, so they are tested first."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redisai_py.backends.base import Backend, ModelSpec, Session, Settings, TensorView
from redisai_py.backends.echo import OPS, EchoBackend, FaultBackend
from redisai_py.errors import BackendError, Terminated
from redisai_py.tensor import DTYPES
from redisai_py.testing import FakeMeter, FakeStrings, FakeTensor, ManualClock

X = FakeTensor([[1, 2], [3, 4]], "FLOAT")


def opened(**model: Any) -> Session:
    return EchoBackend.load(Settings(), FakeMeter()).open(json.dumps(model).encode(), ModelSpec("key", "CPU"), Settings())


def run(*inputs: Any, n: int = 1, **model: Any) -> list[Any]:
    return list(opened(**model).run(inputs, n))


# ---- the echo backend ----------------------------------------------------------------------------------------------------------------


def test_names_are_counted_or_those_of_the_command() -> None:
    session = opened(op="add", inputs=2, outputs=3)
    assert (tuple(session.inputs), tuple(session.outputs)) == (("input_0", "input_1"), ("output_0", "output_1", "output_2"))
    spec = ModelSpec("key", "CPU", ("a",), ("b",))
    session = EchoBackend().open(b'{"op": "echo"}', spec, Settings())
    assert (session.inputs, session.outputs) == (("a",), ("b",))


def test_echo_returns_the_inputs_in_turn() -> None:
    found = run(X, FakeTensor([7], "INT64"), n=3, op="echo")
    assert [output.tolist() for output in found] == [[[1, 2], [3, 4]], [7], [[1, 2], [3, 4]]]
    assert run(FakeStrings([b"a", b"b"]), op="echo")[0].tolist() == [b"a", b"b"]


def test_add_sums_and_keeps_the_dtype() -> None:
    (found,) = run(FakeTensor([1, 250], "UINT8"), FakeTensor([1, 10], "UINT8"), op="add")
    assert (found.dtype, found.tolist()) == (np.uint8, [2, 4])


def test_wrong_outputs_are_wrong() -> None:
    assert len(run(X, op="wrong_count")) == 2
    assert run(X, op="wrong_rows")[0].shape == (3, 2)
    assert np.isnan(run(X, op="nan")[0]).all()
    assert run(X, op="none") == [None]
    assert run(X, op="half")[0].dtype == np.float16


def test_errors_are_raised_always_or_for_one_row() -> None:
    with pytest.raises(BackendError, match="boom"):
        run(X, op="raise", text="boom")
    with pytest.raises(BackendError, match="boom"):
        run(X, op="raise", text="boom", when=3)
    assert run(X, op="raise", text="boom", when=2)[0].shape == (2, 2)
    with pytest.raises(MemoryError):
        run(X, op="oom")
    with pytest.raises(SystemExit):
        run(X, op="system_exit")


@pytest.mark.parametrize("op", ["abort", "exit"])
def test_the_ends_of_the_process_end_the_process(op: str) -> None:
    code = f"""
from redisai_py.backends.echo import *
session = EchoBackend().open(b'{{"op": "{op}"}}', ModelSpec("key", "CPU"), Settings())
session.run([], 1)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode != 0
    assert "still here" not in done.stdout
    assert "Traceback" not in done.stderr


def test_sleeping_lets_other_threads_work_and_spinning_does_not() -> None:
    def progress_during(op: str) -> int:
        thread = threading.Thread(target=run, args=(X,), kwargs={"op": op, "seconds": 0.2})
        count = 0
        thread.start()
        while thread.is_alive():
            count += 1
            time.sleep(0.001)
        return count

    assert progress_during("spin") < 20 < progress_during("sleep")


def test_a_gate_opens_when_the_file_is_there(tmp_path: Path) -> None:
    gate, results = tmp_path / "gate", []
    thread = threading.Thread(target=lambda: results.append(run(X, op="gate", path=str(gate))))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    gate.touch()
    thread.join(10)
    assert len(results) == 1


def test_only_terminable_sessions_can_be_ended(tmp_path: Path) -> None:
    assert not hasattr(opened(op="gate", path="x"), "terminate")
    session: Any = opened(op="gate", path=str(tmp_path / "never"), terminable=True)
    results: list[Exception] = []

    def body() -> None:
        try:
            session.run([X], 1)
        except Terminated as error:
            results.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    while not results:
        session.terminate(thread.ident)
        thread.join(0.01)
    assert "terminate flag being set" in str(results[0])
    session.terminate(thread.ident)


def test_storing_can_sleep_spin_and_fail() -> None:
    for key in ("open_sleep", "open_spin"):
        began = time.monotonic()
        opened(op="echo", **{key: 0.05})
        assert time.monotonic() - began >= 0.05
    with pytest.raises(BackendError, match="bad model"):
        opened(op="echo", open_raise="bad model")


@pytest.mark.parametrize(
    "model",
    [{"op": "eco"}, {}, {"op": "echo", "sleep": 1}, {"op": "sleep"}, {"op": "echo", "seconds": 1}, {"op": "raise", "when": 1}],
)
def test_models_with_wrong_keys_are_refused(model: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match=r"^ERR (not an )?echo model"):
        opened(**model)


@pytest.mark.parametrize("blob", [b"", b"junk", b"[]", b"\xff", b"1"])
def test_other_blobs_are_refused(blob: bytes) -> None:
    with pytest.raises(BackendError, match=r"^ERR not an echo model"):
        EchoBackend().open(blob, ModelSpec("key", "CPU"), Settings())


def test_every_op_runs_or_raises_only_what_it_says(tmp_path: Path) -> None:
    needed = {"seconds": 0, "path": str(tmp_path), "text": "t"}
    ends = {"abort", "segfault", "exit", "kill", "overflow"}
    outside = {"nonsense", "open", "connect", "spawn"}
    for name in OPS.keys() - ends - outside - {"oom", "raise", "system_exit", "unspeakable"}:
        assert run(X, op=name, **{key: needed[key] for key in OPS[name].needs})


def test_the_fault_backend_cannot_be_loaded() -> None:
    with pytest.raises(ImportError):
        FaultBackend.load(Settings(), FakeMeter())


def test_both_are_backends() -> None:
    backend: Backend = EchoBackend.load(Settings(), FakeMeter())
    assert backend.batch_mismatch == "ERR Model did not generate the expected batch size"


# ---- the fakes -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_is_a_read_only_view_for_numpy_and_shared_through_dlpack(dtype: str) -> None:
    tensor = FakeTensor([[1, 0], [0, 1]], dtype)
    assert isinstance(tensor, TensorView)
    array = np.asarray(tensor)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, (2, 2), 4 * DTYPES[dtype].itemsize)
    assert array.dtype == DTYPES[dtype]
    assert np.shares_memory(array, tensor.memory)
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 0
    assert np.asarray(tensor, dtype=np.complex128).flags.writeable
    assert not np.shares_memory(np.array(tensor), tensor.memory)
    assert "dltensor" in repr(tensor.__dlpack__())
    with pytest.raises(TypeError):
        tensor.strings()


def test_a_tensor_is_a_copy_and_needs_a_known_dtype() -> None:
    original = np.ones((2, 3), np.float32).T
    tensor = FakeTensor(original)
    original[:] = 5
    assert np.asarray(tensor).tolist() == [[1, 1]] * 3
    assert np.asarray(tensor).flags.c_contiguous
    with pytest.raises(KeyError):
        FakeTensor(np.float16(1))


def test_strings_have_only_strings() -> None:
    tensor = FakeStrings([b"a", b"bc", b"", b"d"], (2, 2))
    assert isinstance(tensor, TensorView)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("STRING", (2, 2), 8)
    assert tensor.strings() == [b"a", b"bc", b"", b"d"]
    assert np.asarray(tensor).dtype == object and np.asarray(tensor).shape == ()
    with pytest.raises(BufferError):
        tensor.__dlpack__()
    assert FakeStrings([b"a", b"b"]).shape == (2,)


def test_a_meter_adds_up() -> None:
    meter = FakeMeter()
    meter.record(10, 2)
    meter.record(-4, 1)
    assert (meter.memory, meter.accesses, meter.calls) == (6, 3, [(10, 2), (-4, 1)])


def test_a_manual_clock_moves_by_hand_and_forward_only() -> None:
    clock = ManualClock(5)
    clock.advance(10)
    assert clock() == clock() == 15
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
