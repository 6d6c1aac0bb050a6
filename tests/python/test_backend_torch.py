"""The TORCH backend, driven without a server: what it reports about a model, what it returns, what it refuses, and with which words."""

from __future__ import annotations

import io
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redisai_py.backends import backend_class
from redisai_py.backends.base import Backend, ModelSpec, Session, Settings
from redisai_py.errors import BackendError
from redisai_py.tensor import DTYPES
from redisai_py.testing import FakeMeter, FakeStrings, FakeTensor

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*beta state:UserWarning"),
]

SETTINGS = Settings()
X = FakeTensor([[1, 2], [3, 4]], "FLOAT")


# ---- making models -------------------------------------------------------------------------------------------------------------------


def saved(script: Any) -> bytes:
    blob = io.BytesIO()
    torch.jit.save(script, blob)
    return blob.getvalue()


def archive(forward: str, **buffers: Any) -> bytes:
    """A TorchScript archive with one method, given as source."""
    module = torch.nn.Module()
    for name, tensor in buffers.items():
        module.register_buffer(name, tensor)
    script = torch.jit._recursive.create_script_module(module, lambda _: (), share_types=False)
    script.define(forward)
    return saved(script)


def one_line(result: str, parameters: str = "x: Tensor", returns: str = "Tensor", **buffers: Any) -> bytes:
    return archive(f"def forward(self, {parameters}) -> {returns}:\n    result = {result}\n    return result\n", **buffers)


ADD = one_line("x + 1")


def with_code(code: str) -> bytes:
    """A valid archive whose Python source is replaced by `code`: what an attacker sends, with no check of torch's compiler in between."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ADD)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(entry.filename, code if entry.filename.endswith(".py") else old.read(entry))
    return out.getvalue()


def with_members(members: dict[str, bytes]) -> bytes:
    """A valid archive with members added or replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ADD)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename not in members:
                new.writestr(entry.filename, old.read(entry))
        for name, data in members.items():
            new.writestr(name, data)
    return out.getvalue()


with zipfile.ZipFile(io.BytesIO(ADD)) as _zip:
    CODE = next(name for name in _zip.namelist() if name.endswith(".py"))
    HEAD = _zip.read(CODE).decode().partition("  def forward")[0]
    ROOT = CODE.partition("/")[0]
    SELF = _zip.read(CODE).decode().partition("self: ")[2].partition(",")[0]


def handwritten(body: str, parameters: str = "x: Tensor") -> bytes:
    return with_code(f"{HEAD}  def forward(self: {SELF}, {parameters}) -> Tensor:\n    {body}\n    return torch.add(x, 1)\n")


# ---- driving the backend -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend() -> Backend:
    return backend_class("TORCH").load(SETTINGS, FakeMeter())


@pytest.fixture(scope="module")
def worker() -> Iterator[ThreadPoolExecutor]:
    """One thread that runs sessions, as in the server; inference mode stays there."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def opened(backend: Backend) -> Callable[..., Session]:
    def open_(blob: bytes, device: str = "CPU", settings: Settings = SETTINGS) -> Session:
        return backend.open(blob, ModelSpec("key", device), settings)

    return open_


Run = Callable[..., list[np.ndarray[Any, Any]]]


@pytest.fixture
def run(opened: Callable[..., Session], worker: ThreadPoolExecutor) -> Run:
    def run_(model: bytes | Session, *inputs: Any, n: int = 1) -> list[np.ndarray[Any, Any]]:
        session = opened(model) if isinstance(model, bytes) else model
        return list(worker.submit(session.run, inputs, n).result())

    return run_


def refused(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(BackendError) as caught:
        call(*arguments, **named)
    return str(caught.value)


# ---- what a session says about itself ------------------------------------------------------------------------------------------------


def test_the_backend_names_itself(backend: Backend) -> None:
    assert (backend.name, backend.version, backend.package) == ("TORCH", "NA", "torch")
    assert backend.batch_mismatch == "ERR Model did not generate the expected batch size"


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("x: Tensor", ("x",)),
        ("a: Tensor, b: Tensor", ("a", "b")),
        ("x: Tensor, sample_rate: int", ("x", "sample_rate")),
        ("", ()),
        ("x: List[Tensor]", ("x",)),
    ],
)
def test_inputs_are_the_parameters_of_forward(opened: Callable[..., Session], parameters: str, names: tuple[str, ...]) -> None:
    assert tuple(opened(one_line("torch.ones([1])", parameters)).inputs) == names


@pytest.mark.parametrize(
    ("returns", "result", "count"),
    [
        ("Tensor", "x", 1),
        ("Tuple[Tensor, Tensor, Tensor]", "(x, x, x)", 3),
        ("Tuple[Tensor, int]", "(x, 1)", 1),
        ("Tuple[Tensor, List[Tensor]]", "(x, [x])", 1),
        ("Tuple[Tensor]", "(x,)", 1),
        ("Dict[str, Tensor]", "{'x': x}", 0),
        ("List[int]", "[1]", 0),
        ("int", "1", 0),
        ("None", "None", 0),
    ],
)
def test_outputs_are_the_tensors_of_the_declared_return_type(opened: Callable[..., Session], returns: str, result: str, count: int) -> None:
    assert tuple(opened(one_line(result, returns=returns)).outputs) == ("",) * count


def test_a_model_that_returns_a_list_of_tensors_cannot_be_stored(opened: Callable[..., Session]) -> None:
    line = refused(opened, one_line("[x, x]", returns="List[Tensor]"))
    assert line == "Erorr while trying to retrive model outputs number: std::exception"


def test_a_module_without_forward_is_refused(opened: Callable[..., Session]) -> None:
    line = refused(opened, archive("def backward(self, x: Tensor) -> Tensor:\n    return x\n"))
    assert line == "Method 'forward' is not defined."


# ---- tensors in and out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "UINT16"])
def test_every_dtype_goes_in_and_comes_out(run: Run, dtype: str) -> None:
    given = FakeTensor([[0, 1, 1], [1, 0, 1]], dtype)
    (found,) = run(one_line("x.flip([0])"), given)
    assert found.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(found, given.memory[::-1])


@pytest.mark.parametrize(
    ("tensor", "line"),
    [(FakeTensor([1], "UINT16"), "Unsupported kUInt bits 16"), (FakeStrings([b"a"]), "Unsupported code 7")],
    ids=["UINT16", "STRING"],
)
def test_dtypes_that_torch_never_took_are_refused(run: Run, tensor: Any, line: str) -> None:
    assert refused(run, ADD, tensor) == line
    assert refused(run, one_line("x + y", "x: Tensor, y: Tensor"), FakeTensor([1], "INT32"), tensor) == line


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ("x.to(torch.bfloat16)", "BFloat16 is not supported by dlpack"),
        ("torch.complex(x, x)", "ComplexFloat is not supported by dlpack"),
        ("torch.complex(x.double(), x.double())", "ComplexDouble is not supported by dlpack"),
        ("torch.complex(x.half(), x.half())", "ComplexHalf is not supported by dlpack"),
        ("torch.quantize_per_tensor(x, 0.1, 0, 12)", "QInt8 is not supported by dlpack"),
        ("torch.quantize_per_tensor(x, 0.1, 0, 13)", "QUInt8 is not supported by dlpack"),
        ("torch.quantize_per_tensor(x, 0.1, 0, 14)", "QInt32 is not supported by dlpack"),
        ("x.half()", "ERR the model returned a tensor of type float16, which has no RedisAI dtype"),
        ("x.to(28)", "ERR the model returned a tensor of type uint32, which has no RedisAI dtype"),
    ],
)
def test_outputs_without_a_dtype_on_the_wire_are_errors(run: Run, result: str, line: str) -> None:
    blob = archive(f"def forward(self, x):\n    return {result.replace('torch.bfloat16', '15')}\n")
    assert refused(run, blob, X) == line
    pair = archive(f"def forward(self, x):\n    return (x, {result.replace('torch.bfloat16', '15')})\n")
    assert refused(run, pair, X, n=2) == line


def test_several_outputs_keep_their_order(run: Run) -> None:
    a, b = run(one_line("(x + 1, x * 2)", returns="Tuple[Tensor, Tensor]"), X, n=2)
    np.testing.assert_array_equal(a, X.memory + 1)
    np.testing.assert_array_equal(b, X.memory * 2)


def test_a_list_that_hides_behind_any_is_flattened(run: Run) -> None:
    found = run(one_line("[x, x + 1, x + 2]", returns="Any"), X, n=3)
    assert [int(output[0, 0]) for output in found] == [1, 2, 3]


@pytest.mark.parametrize("result", ["(x, 1)", "1", "{'x': x}", "None", "'text'", "[1, 2]", "(x, [x])"])
def test_results_that_are_not_tensors_are_errors(run: Run, result: str) -> None:
    assert refused(run, one_line(result, returns="Any"), X) == "Function returned non-tensor valuesforward"


@pytest.mark.parametrize("n", [1, 3])
def test_another_number_of_outputs_than_asked_for_is_an_error(run: Run, n: int) -> None:
    line = refused(run, one_line("(x, x)", returns="Tuple[Tensor, Tensor]"), X, n=n)
    assert line == "Function returned unexpected number of outputs - forward"


def test_one_tensor_is_not_two(run: Run) -> None:
    assert refused(run, ADD, X, n=2) == "Function returned unexpected number of outputs - forward"


@pytest.mark.parametrize("result", ["x", "1", "(x, x)"])
def test_a_result_nobody_asked_for_is_ignored(run: Run, result: str) -> None:
    assert run(one_line(result, returns="Any"), X, n=0) == []


@pytest.mark.parametrize("result", ["x.t()", "x[:, 1:]", "x.expand(3, 2, 2)", "torch.ones([2, 3, 4]).permute([2, 0, 1])"])
def test_outputs_are_contiguous(run: Run, result: str) -> None:
    blob = one_line(result)
    (found,) = run(blob, X)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, torch.jit.load(io.BytesIO(blob))(torch.from_numpy(X.memory)).numpy())


@pytest.mark.parametrize(("result", "shape"), [("x.sum()", ()), ("x[:0]", (0, 2)), ("torch.ones([3, 0, 2])", (3, 0, 2))])
def test_scalar_and_empty_outputs_are_fine(run: Run, result: str, shape: tuple[int, ...]) -> None:
    (found,) = run(one_line(result), X)
    assert found.shape == shape


def test_empty_and_scalar_inputs_are_fine(run: Run) -> None:
    assert run(ADD, FakeTensor(np.zeros((0, 4), np.float32)))[0].shape == (0, 4)
    assert run(ADD, FakeTensor(np.float64(2)))[0] == 3


def test_a_parameter_can_be_an_output(run: Run) -> None:
    class Weight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.w

    assert run(saved(torch.jit.script(Weight())), X)[0].tolist() == [1, 1, 1]


def test_sparse_and_negated_outputs_become_plain(run: Run) -> None:
    np.testing.assert_array_equal(run(one_line("x.to_sparse()"), X)[0], X.memory)
    np.testing.assert_array_equal(run(one_line("torch._neg_view(x)"), X)[0], -X.memory)


def test_a_tensor_serves_as_a_number(run: Run) -> None:
    blob = one_line("x * rate", "x: Tensor, rate: int")
    np.testing.assert_array_equal(run(blob, X, FakeTensor(3, "INT64"))[0], X.memory * 3)


# ---- what a model does to its inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "x.add_(1)",
        "y = x.view([-1])\n    y.mul_(5)",
        "x[0] = 9.0",
        "y = [x]\n    y[0].zero_()",
        "torch.add(x, 1, out=x)",
        "if bool(x.sum() > 0):\n        x.zero_()",
        "y = x.t()\n    for i in range(2):\n        y[i].fill_(7)",
        "x.resize_([1])",
    ],
)
def test_a_model_that_writes_to_its_input_does_not_change_the_stored_tensor(run: Run, body: str) -> None:
    x = FakeTensor([[1, 2], [3, 4]], "FLOAT")
    before = x.memory.copy()
    blob = archive(f"def forward(self, x):\n    {body}\n    return x * 1\n")
    expected = torch.jit.load(io.BytesIO(blob))(torch.from_numpy(before.copy())).numpy()
    np.testing.assert_array_equal(run(blob, x)[0], expected)
    np.testing.assert_array_equal(x.memory, before)


def test_a_forked_writer_does_not_change_the_stored_tensor(run: Run) -> None:
    def bump(x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)

    class Forks(torch.nn.Module):
        def forward(self, x):
            return torch.jit.wait(torch.jit.fork(bump, x))

    x = FakeTensor([1, 2], "FLOAT")
    assert run(saved(torch.jit.script(Forks())), x)[0].tolist() == [2, 3]
    assert x.memory.tolist() == [1, 2]


def test_a_module_that_keeps_its_input_keeps_a_copy(run: Run, opened: Callable[..., Session]) -> None:
    session = opened(archive("def forward(self, x):\n    y = self.last\n    self.last = x\n    return y + 0\n", last=torch.zeros(2)))
    first = FakeTensor([1, 2], "FLOAT")
    run(session, first)
    first.memory[:] = 99
    assert run(session, first)[0].tolist() == [1, 2]


def test_a_model_that_only_reads_gets_the_stored_memory_itself(run: Run) -> None:
    x = FakeTensor([[1, 2]], "FLOAT")
    assert np.shares_memory(run(one_line("x.view([-1])"), x)[0], x.memory)


def test_writing_to_the_module_costs_no_copy_of_the_inputs(opened: Callable[..., Session]) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU(inplace=True))
    for training in (True, False):
        session: Any = opened(saved(torch.jit.script(network.train(training))))
        assert session._copied == (False,)
    session = opened(archive("def forward(self, x):\n    self.count.add_(1)\n    return x + self.count\n", count=torch.zeros(1)))
    assert session._copied == (False,)


def test_statistics_among_the_inputs_stay_as_they_are(run: Run) -> None:
    blob = archive("def forward(self, x, m, v):\n    return torch.batch_norm(x, None, None, m, v, True, 0.1, 1e-5, False)\n")
    x, mean, variance = (
        FakeTensor(np.arange(size, dtype=np.float32).reshape(shape)) for size, shape in ((8, (4, 2)), (2, (2,)), (2, (2,)))
    )
    before = [tensor.memory.copy() for tensor in (x, mean, variance)]
    run(blob, x, mean, variance)
    for tensor, memory in zip((x, mean, variance), before, strict=True):
        np.testing.assert_array_equal(tensor.memory, memory)


def test_a_list_in_the_module_keeps_copies(opened: Callable[..., Session]) -> None:
    class Collects(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = [torch.zeros(1)]

        def forward(self, x):
            self.seen.append(x)
            return torch.cat(self.seen)

    session: Any = opened(saved(torch.jit.script(Collects())))
    assert session._copied == (True,)


def test_equal_inputs_give_equal_outputs(run: Run, opened: Callable[..., Session]) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5)).eval()
    session = opened(saved(torch.jit.trace(network, torch.ones(1, 2))))
    results = {run(session, X)[0].tobytes() for _ in range(20)}
    assert len(results) == 1
    np.testing.assert_allclose(run(session, X)[0], network(torch.from_numpy(X.memory)).detach().numpy(), rtol=1e-6)


def test_one_session_serves_several_threads(opened: Callable[..., Session]) -> None:
    session = opened(one_line("(x @ x.t()).sum() + x.sum()"))
    tensors = [FakeTensor(np.full((8, 8), i, np.float32)) for i in range(8)]
    expected = [float((t.memory @ t.memory.T).sum() + t.memory.sum()) for t in tensors]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: float(session.run([tensors[i % 8]], 1)[0]), range(200)))
    assert found == expected * 25


def test_a_worker_enters_inference_mode_and_no_other_thread_does(run: Run, worker: ThreadPoolExecutor) -> None:
    run(ADD, X)
    assert worker.submit(torch.is_inference_mode_enabled).result()
    assert not torch.is_inference_mode_enabled()


# ---- errors of runs ------------------------------------------------------------------------------------------------------------------


def test_a_failing_run_sends_the_interpreters_own_words(run: Run) -> None:
    line = refused(run, one_line("x + y", "x: Tensor, y: Tensor"), FakeTensor([1, 2], "FLOAT"), FakeTensor([1, 2, 3], "FLOAT"))
    assert line.startswith("The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript")
    assert "RuntimeError: The size of tensor a (2) must match the size of tensor b (3)" in line


def test_an_exception_of_the_model_is_an_error_and_the_next_run_is_fine(run: Run, opened: Callable[..., Session]) -> None:
    session = opened(archive("def forward(self, x):\n    if bool(x[0] < 0):\n        raise ValueError('no negatives')\n    return x\n"))
    assert "no negatives" in refused(run, session, FakeTensor([-1], "FLOAT"))
    assert run(session, FakeTensor([1], "FLOAT"))[0].tolist() == [1]


def test_a_wrong_number_of_inputs_is_an_error(run: Run) -> None:
    assert "missing value for argument 'x'" in refused(run, ADD)
    assert "expected at most 2 argument(s) but received 3" in refused(run, ADD, X, X)
    assert "expected at most 2 argument(s)" in refused(run, archive("def forward(self, x):\n    return x.add_(1)\n"), X, X)


def test_memory_that_is_not_there_is_an_error(run: Run) -> None:
    assert "allocate" in refused(run, one_line("x.expand([1 << 40, 2, 2]).contiguous()"), X)


def test_out_of_memory_on_a_gpu_is_tried_again_after_giving_memory_back(
    run: Run, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = opened(archive("def forward(self, x):\n    return x.add_(1)\n"))
    forward, events = session._forward, []

    def full_once(*arguments: Any) -> Any:
        if "emptied" not in events:
            arguments[0].fill_(77)  # a run that got half-way
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("emptied"))
    session._forward = full_once
    assert run(session, FakeTensor([1], "FLOAT"))[0].tolist() == [2]
    assert events == ["emptied"]


def test_a_closed_session_says_so(run: Run, opened: Callable[..., Session]) -> None:
    session = opened(ADD)
    session.close()
    session.close()
    assert refused(run, session, X) == "ERR the model is closed"


# ---- devices and settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["CPU", "cpu", "CPU:1", "cpu:77", "CPUfoo"])
def test_every_cpu_is_the_cpu(run: Run, opened: Callable[..., Session], device: str) -> None:
    assert run(opened(ADD, device), FakeTensor([1], "FLOAT"))[0].tolist() == [2]


@pytest.mark.parametrize("device", ["", "DISK", "GPU0", "GPU:40000", "GPU:-2"])
def test_devices_that_do_not_exist_are_refused(opened: Callable[..., Session], device: str) -> None:
    assert refused(opened, ADD, device) == "ERR unsupported device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["GPU", "gpu:0", "GPU:1"])
def test_a_gpu_that_is_not_there_is_refused(opened: Callable[..., Session], device: str) -> None:
    assert refused(opened, ADD, device) == "GPU requested but Torch couldn't find CUDA"


def test_intra_op_threads_follow_the_settings(backend: Backend, opened: Callable[..., Session]) -> None:
    before = torch.get_num_threads()
    try:
        opened(ADD, settings=Settings(intra_op=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_inter_op_threads_cannot_change_after_the_start(opened: Callable[..., Session]) -> None:
    opened(ADD, settings=Settings(inter_op=torch.get_num_interop_threads()))
    line = refused(opened, ADD, settings=Settings(inter_op=torch.get_num_interop_threads() + 1))
    assert line == "Cannot set number of inter-op threads after parallel work has started"


# ---- blobs that are not archives -----------------------------------------------------------------------------------------------------


def test_other_formats_are_named(opened: Callable[..., Session]) -> None:
    checkpoint = io.BytesIO()
    torch.save({"w": torch.ones(2)}, checkpoint)
    for blob, words in [
        (b"", "it looks like an empty blob"),
        (checkpoint.getvalue(), "it looks like a checkpoint saved by torch.save"),
        (b"\x80\x04\x95\x00\x00", "it looks like a Python pickle"),
        (b"\x1f\x8b\x08\x00", "it looks like a gzip file"),
        (b"\x1c\x00\x00\x00TFL3" + b"\x00" * 50, "it looks like a TensorFlow Lite model; store it with TFLITE"),
    ]:
        line = refused(opened, blob)
        assert line.startswith("ERR the blob is not a TorchScript archive: ")
        assert words in line


def test_junk_is_refused_with_the_readers_words(opened: Callable[..., Session]) -> None:
    noise = random.Random(1).randbytes(5000)
    assert "PytorchStreamReader failed reading zip archive" in refused(opened, noise)


def test_an_archive_cut_anywhere_is_refused(opened: Callable[..., Session]) -> None:
    blob = saved(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))))
    for length in [*range(0, len(blob) - 1, 97), len(blob) - 1]:
        assert refused(opened, blob[:length])


def test_archives_with_flipped_bits_open_or_are_refused(run: Run, opened: Callable[..., Session]) -> None:
    """With debug records in place, about one in a thousand ended the process inside torch."""
    blob = saved(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())))
    generator = random.Random(2)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(blob)
        for _ in range(generator.randint(1, 8)):
            damaged[generator.randrange(len(blob))] ^= 1 << generator.randrange(8)
        try:
            session = opened(bytes(damaged))
            run(session, FakeTensor(np.ones((1, 8), np.float32)))
        except BackendError:
            refusals += 1
    assert refusals > 100
    assert run(ADD, FakeTensor([1], "FLOAT"))[0].tolist() == [2]


def test_a_pickle_inside_an_archive_runs_nothing(opened: Callable[..., Session], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    gadget = f"\x80\x02cposix\nsystem\nX{chr(len(f'touch {canary}'))}\x00\x00\x00touch {canary}\x85R.".encode("latin-1")
    assert "Unknown type name 'posix.system'" in refused(opened, with_members({f"{ROOT}/data.pkl": gadget}))
    assert not canary.exists()


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(opened: Callable[..., Session]) -> None:
    bomb = with_members({f"{ROOT}/code/zeros.py": b"\n" * (80 << 20)})
    assert len(bomb) < 1 << 20
    assert refused(opened, bomb) == "ERR the archive unpacks to more than a model of its size can hold"


def test_a_damaged_weight_is_found_by_its_checksum(opened: Callable[..., Session]) -> None:
    blob = bytearray(one_line("x + self.w", w=torch.full((64,), 3.0)))
    at = blob.index(b"\x00\x00\x40\x40" * 64)
    blob[at + 100] ^= 1
    assert refused(opened, bytes(blob)) == f"ERR the archive is damaged: {ROOT}/data/0 does not match its checksum"


def test_an_error_in_an_archive_with_damaged_debug_records_is_an_error(opened: Callable[..., Session]) -> None:
    """Torch reads debug records while it makes a message, and a second error there ends the process."""
    blob = with_members({CODE: b"nonsense", f"{CODE}.debug_pkl": b"\x80\x02garbage"})
    assert refused(opened, blob)


WEIGHT = one_line("x + self.w", w=torch.zeros(64))


def with_pickle(name: str, change: Callable[[bytes], bytes], blob: bytes = WEIGHT) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename == f"{ROOT}/{name}" else data)
    return out.getvalue()


def test_a_tensor_cannot_reach_beyond_its_data(opened: Callable[..., Session]) -> None:
    """Torch believes the count in the pickle; such a model returned what lay behind its weights in the server's memory."""

    def longer(data: bytes) -> bytes:
        assert data.count(b"K\x40t") == 2, "the count of the storage and the shape of the tensor"
        return data.replace(b"K\x40t", b"M\xff\x7ft")

    assert opened(with_pickle("data.pkl", lambda data: data))
    assert refused(opened, with_pickle("data.pkl", longer)) == "ERR the archive is damaged: storage 0 is shorter than 32767 elements"


def test_a_memo_number_cannot_claim_memory(opened: Callable[..., Session]) -> None:
    line = refused(opened, with_pickle("constants.pkl", lambda _: b"\x80\x02)r\xff\xff\xff\x7f."))
    assert line == "ERR the archive is damaged: constants.pkl cannot be read: a memo number beyond the number of values"


@pytest.mark.parametrize("data", [b")" + b"\x85" * 50_000, b"(" * 50_000 + b"t" * 50_000 + b"\x85"], ids=["wraps", "marks"])
def test_deeply_nested_values_are_refused(opened: Callable[..., Session], data: bytes) -> None:
    line = refused(opened, with_pickle("constants.pkl", lambda _: b"\x80\x02" + data + b"."))
    assert line == "ERR the archive's values nest deeper than 1000 levels"


def test_values_of_every_kind_are_no_damage(run: Run) -> None:
    class Values(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = ["\xff\u20ac", "b"]
            self.table = {"a": [1, 2], "b": [3]}
            self.pair = (1, 2.5, "x", None, True)
            self.weights = [torch.ones(1), torch.ones(1, dtype=torch.bfloat16)]
            self.big = list(range(5000))
            self.shared = self.weights[0]
            self.linear = torch.ao.nn.quantized.dynamic.Linear(2, 2)

        def forward(self, x):
            return x + self.table["a"][0] + self.pair[0] + self.weights[0] * 0 + len(self.names) * 0 + self.shared * 0 + self.big[3] * 0

    assert run(saved(torch.jit.script(Values())), FakeTensor([1], "FLOAT"))[0].tolist() == [3]


def test_archives_of_the_first_format_are_refused(opened: Callable[..., Session]) -> None:
    assert "older than 1.2" in refused(opened, with_members({f"{ROOT}/model.json": b"{}"}))


def test_members_outside_the_archive_are_refused_and_other_files_inside_ignored(run: Run, opened: Callable[..., Session]) -> None:
    assert "file in archive is not in a subdirectory" in refused(opened, with_members({"../../evil.py": b""}))
    assert run(with_members({f"{ROOT}/extra/note.txt": b"torch.save"}), FakeTensor([1], "FLOAT"))[0].tolist() == [2]


# ---- code in archives ----------------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "plain": 'torch.save(x, "{path}")',
    "namespace": 'ops.aten.save(x, "{path}")',
    "alias": 't = torch\n    t.save(x, "{path}")',
    "blanks": 'torch .  save(x, "{path}")',
    "form feed": 'torch.\x0csave(x, "{path}")',
    "continuation": 'torch.\\\n  save(x, "{path}")',
    "comment": '(torch. # hello\n  save)(x, "{path}")',
    "getattr": 'getattr(torch, "save")(x, "{path}")',
    "getattr with two strings": 'getattr(torch, "sa" "ve")(x, "{path}")',
    "getattr with an escape": 'getattr(torch, "s\\141ve")(x, "{path}")',
    "getattr in three quotes": 'getattr(torch, """save""")(x, "{path}")',
    "nested getattr": 'getattr(getattr(ops, "aten"), "sa" "ve")(x, "{path}")',
    "getattr of a call": 'getattr((torch), "sa" "ve")(x, "{path}")',
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_file_operator_gets_in(opened: Callable[..., Session], tmp_path: Path, spelling: str) -> None:
    line = refused(opened, handwritten(SPELLINGS[spelling].replace("{path}", str(tmp_path / "canary"))))
    assert line.startswith("ERR the model uses operators that stored models may not use: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "nested getattr"])
def test_those_spellings_do_reach_the_operator(tmp_path: Path, spelling: str) -> None:
    """If torch stops taking one, the test above proves nothing for it any more."""
    blob = handwritten(SPELLINGS[spelling].replace("{path}", str(tmp_path / "canary")))
    torch.jit.load(io.BytesIO(blob))(torch.ones(1))
    assert (tmp_path / "canary").exists()


def test_default_values_run_while_loading_and_are_read_before(opened: Callable[..., Session], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x07" * 8)
    blob = handwritten("y", parameters=f'x: Tensor, y: Tensor=torch.from_file("{secret}", False, 8)')
    assert "from_file" in refused(opened, blob)


def test_the_second_net_finds_an_operator_that_the_first_one_missed(
    opened: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redisai_py.backends import torch_ops

    monkeypatch.setattr(torch_ops, "check_source", lambda *_, **__: None)
    path = tmp_path / "canary"
    for body in (f'torch.save(x, "{path}")', f'if bool(x[0] > 0):\n      torch.save(x, "{path}")'):
        assert "aten::save" in refused(opened, handwritten(body))
    assert "aten::from_file" in refused(opened, handwritten(f'x = torch.add(x, torch.from_file("{path}", False, 1))'))
    assert not path.exists()


def test_methods_that_forward_does_not_call_are_read_too(opened: Callable[..., Session]) -> None:
    module = torch.nn.Module()
    script = torch.jit._recursive.create_script_module(module, lambda _: (), share_types=False)
    script.define("def other(self, x: Tensor):\n    torch.save(x, '/nowhere')\n")
    script.define("def forward(self, x):\n    return x\n")
    assert "save" in refused(opened, saved(script))


def test_file_operators_can_be_allowed(run: Run, opened: Callable[..., Session], tmp_path: Path) -> None:
    session = opened(handwritten(f'torch.save(x, "{tmp_path / "out"}")'), settings=Settings(allow_file_ops=True))
    run(session, X)
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "body",
    ['y = ops.redis.execute("FLUSHALL", [])', 'y = ops.redisAI.model_execute("m", [x], 1)', "y = ops.c10d.check_for_nan(x)"],
)
@pytest.mark.parametrize("allow", [False, True])
def test_models_never_reach_the_server_or_other_processes(opened: Callable[..., Session], body: str, allow: bool) -> None:
    line = refused(opened, handwritten(body), settings=Settings(allow_file_ops=allow))
    assert line.startswith("ERR the model uses operators that stored models may not use: ")


def test_harmless_models_that_speak_of_files_are_stored(run: Run) -> None:
    """Words in prose and names that only resemble operators; nested containers, whose attributes torch writes as getattr."""

    class Talks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.saved = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Sequential(torch.nn.Identity())))
            self.save_count = 1

        def forward(self, x):
            if x.dim() > 5:
                raise ValueError("nothing to save from_file here")
            return self.saved(x) + self.save_count

    assert run(saved(torch.jit.script(Talks())), FakeTensor([1], "FLOAT"))[0].tolist() == [2]


DEEP: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "a = " + "(" * n + "x" + ")" * n,
    "lists": lambda n: "a = " + "[" * n + "x" + "]" * n,
    "calls": lambda n: "a = " + "torch.neg(" * n + "x" + ")" * n,
    "sums": lambda n: "a = x" + "+x" * n,
    "signs": lambda n: "a = " + "-" * n + "x",
    "powers": lambda n: "a = x" + "**x" * n,
    "nots": lambda n: "a = " + "not " * n + "True",
    "comparisons": lambda n: "a = 1" + "<1" * n,
    "indexes": lambda n: "a = x" + "[0]" * n,
    "conditions": lambda n: "a = " + "1 if True else " * n + "2",
    "types": lambda n: "a = annotate(" + "List[" * n + "int" + "]" * n + ", [])",
    "sums in brackets": lambda n: "a = " + ("(" + "x+" * 100) * (n // 100) + "x" + ")" * (n // 100),
    "sums over lines": lambda n: "a = (x" + "\n+x" * n + ")",
    "blocks": lambda n: "".join(" " * (4 if i == 0 else 0) + " " * i + "if True:\n" for i in range(n)).lstrip() + " " * (n + 5) + "a = 1",
    "elifs": lambda n: "if True:\n      a = 1\n" + "    elif True:\n      a = 2\n" * n + "    else:\n      a = 3",
}


@pytest.mark.parametrize("shape", DEEP)
def test_code_that_would_overflow_the_compilers_stack_is_refused(opened: Callable[..., Session], shape: str) -> None:
    assert (
        refused(opened, handwritten(DEEP[shape](30_000 if shape != "blocks" else 3000)))
        == "ERR the model's code nests deeper than 500 levels"
    )


@pytest.mark.parametrize(
    "source",
    [
        "def f(x) -> Any:\n    return [x]\n",
        "def f(x) -> Optional[Any]:\n    y = 1\n    return ([x, y])\n",
        "def f(x) -> Any:\n    return 1 if bool(x) else [x]\n",
        "def f(x):\n    y: Any = [x]\n    return x\n",
        "def f(x):\n    # type: (Tensor) -> Any\n    return [x]\n",
        "def f(x):\n    y = annotate(Any, [x])\n    return x\n",
    ],
)
def test_lists_that_crash_the_compiler_are_found(source: str) -> None:
    from redisai_py.backends.torch_ops import check_source

    assert "has a list where the type is Any" in refused(check_source, source)


@pytest.mark.parametrize("expression", ["x[]", "x [ ]", "(x)[]", "x[0][\\\n]", "x[ # an index\n]", "x.t()[]", "'s' + x[]"])
def test_an_index_with_nothing_in_it_is_found(expression: str) -> None:
    from redisai_py.backends.torch_ops import check_source

    assert "an index with nothing between [ and ]" in refused(check_source, f"def f(x):\n    return {expression}\n")


def test_empty_lists_are_no_index() -> None:
    from redisai_py.backends.torch_ops import check_source

    check_source("def f(x: Tensor):\n    # x[]\n    y: List[Tensor] = []\n    for i in []:\n        y = [x[0], 'x[]']\n    return []\n")


@pytest.mark.parametrize(
    "source",
    [
        "def f(x) -> Any:\n    y = [x]\n    return y\n",
        "def f(x) -> Any:\n    return x[0]\n",
        "def f(x) -> Any:\n    return x\ndef g(x) -> List[Tensor]:\n    return [x]\n",
        "def f(x):\n    y: List[Any] = [x]\n    return x\n",
    ],
)
def test_lists_that_compile_are_left_alone(source: str) -> None:
    from redisai_py.backends.torch_ops import check_source

    check_source(source)
    torch._C.CompilationUnit().define(source, lambda name: None)


TOO_COMPLEX = "ERR the model is too complex: its functions, put into one another where they are called, grow too large"


def methods(bodies: list[str], forward: str) -> bytes:
    source = "".join(f"  def m{i}(self: {SELF}, x: Tensor) -> Tensor:\n    {body}\n" for i, body in enumerate(bodies))
    return with_code(f"{HEAD}{source}  def forward(self: {SELF}, x: Tensor) -> Tensor:\n    {forward}\n")


def test_functions_that_double_at_each_call_are_refused(opened: Callable[..., Session]) -> None:
    doubling = [f"return torch.add((self).m{i + 1}(x, ), (self).m{i + 1}(x, ))" for i in range(40)]
    assert refused(opened, methods([*doubling, "return x"], "return (self).m0(x, )")) == TOO_COMPLEX


def test_calls_many_levels_deep_are_refused(opened: Callable[..., Session]) -> None:
    calls = [f"return (self).m{i + 1}(x, )" for i in range(3000)]
    assert refused(opened, methods([*calls, "return x"], "return (self).m0(x, )")) == TOO_COMPLEX
    assert refused(opened, methods(["return x"] * 10_001, "return x")) == "ERR the model has more than 10000 functions"


def test_long_chains_of_operators_are_refused(opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    from redisai_py.backends import torch_graph

    monkeypatch.setattr(torch_graph, "MAX_CHAIN", 100)
    assert refused(opened, handwritten("\n    ".join(["x = torch.add(x, 1)"] * 101))) == TOO_COMPLEX
    assert opened(handwritten("\n    ".join(["y = torch.add(x, 1)"] * 200)))


def test_long_code_that_is_not_deep_is_fine(run: Run) -> None:
    constants = ", ".join(f"-{i}.5e-3" for i in range(5000))
    lines = "\n".join(f"    y = y + x * {i} - (x + {i}) / 3" for i in range(200))
    blob = archive(f"def forward(self, x):\n    y = x\n{lines}\n    z = torch.tensor([{constants}])\n    return y + z[0] * 0\n")
    assert run(blob, FakeTensor([1], "FLOAT"))[0].shape == (1,)


def test_opening_and_running_leave_no_thread_behind(run: Run) -> None:
    run(ADD, X)
    before = threading.active_count()
    for _ in range(5):
        run(ADD, X)
    assert threading.active_count() == before
