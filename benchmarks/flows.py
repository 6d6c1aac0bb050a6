"""Rows for AI flows: what a trigger costs beside the command that does the same.

All run the same ONNX model over the same two tensors. A flow adds two hand-offs to Python, and a command per tensor that it touches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .rows import Row

MODULE_ARGS = ("FLOWS", "yes")

SOURCE = """
import redisAI

def runner():
    made = redisAI.createModelRunner('onnx')
    for tensor in redisAI.mgetTensorsFromKeyspace(['a', 'b']):
        redisAI.modelRunnerAddInput(made, 'x', tensor)
    redisAI.modelRunnerAddOutput(made, 'y')
    return made

async def nothing_async(record):
    return 1

async def run_async(record):
    tensors = await redisAI.modelRunnerRunAsync(runner())
    redisAI.setTensorInKey('c', tensors[0])

def run(record):
    redisAI.setTensorInKey('c', redisAI.modelRunnerRun(runner())[0])

async def dag(record):
    a, b = redisAI.mgetTensorsFromKeyspace(['a', 'b'])
    made = redisAI.createDAGRunner().Input('a', a).Input('b', b).OpsFromString('|> AI.MODELEXECUTE onnx INPUTS 2 a b OUTPUTS 1 c')
    await made.TensorGet('c').Run()

GB('CommandReader').map(lambda record: 1).register(trigger='nothing')
GB('CommandReader').map(nothing_async).register(trigger='nothing_async')
GB('CommandReader').foreach(lambda record: execute('GET', 's4')).register(trigger='get')
GB('CommandReader').map(run_async).register(trigger='run_async')
GB('CommandReader').map(run).register(trigger='run')
GB('CommandReader').map(dag).register(trigger='dag')
"""


def flow_rows() -> Iterable[Row]:
    """RG.TRIGGER against AI.MODELEXECUTE of the same model; a flow that runs it reads two tensors and stores one, as the command does."""
    command = "MODELEXECUTE onnx a*b"
    yield Row(command, ["AI.MODELEXECUTE", "onnx", "INPUTS", "2", "a", "b", "OUTPUTS", "1", "c"], 20_000, needs="ONNX")
    for name, trigger in (
        ("nothing", "nothing"),
        ("nothing, coroutine", "nothing_async"),
        ("one GET", "get"),
        ("a*b and store", "run"),
        ("a*b and store, coroutine", "run_async"),
        ("a*b as a DAG, coroutine", "dag"),
    ):
        yield Row(f"TRIGGER {name}", ["RG.TRIGGER", trigger], 5_000, command, needs="ONNX")


def register(client: Any) -> None:
    """Registers the flows of the rows, on a server that was loaded with MODULE_ARGS."""
    client.execute_command("RG.PYEXECUTE", SOURCE)
