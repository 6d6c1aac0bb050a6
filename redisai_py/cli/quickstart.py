"""`redisai quickstart`: a guided tour against a running server: what each command is for, its reply and its time.

The steps are the table STEPS. The model is the same small network in four formats (samples/), stored for the first backend that the server
has. The tour's keys are deleted at its end; it does not begin when one of them exists.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .address import Address, RefusedError, address, address_options
from .client import NO_MODULE, NO_SERVER
from .output import console, write, write_json
from .replies import for_terminal, plain
from .resp import Connection, Failure
from .tables import duration

SAMPLES = Path(__file__).resolve().parent / "samples"
#: backend -> (file, arguments of AI.MODELSTORE before BLOB); those that import quickly first
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ONNX": ("digits.onnx", ()),
    "TFLITE": ("digits.tflite", ()),
    "TORCH": ("digits.pt", ()),
    "TF": ("digits.pb", ("INPUTS", "1", "x", "OUTPUTS", "1", "probabilities")),
}
#: A handwritten 3: 8 x 8 pixels, 0 (white) to 16.
PIXELS = (
    *(0, 0, 5, 11, 16, 16, 8, 0),
    *(0, 0, 15, 14, 8, 12, 15, 0),
    *(0, 0, 0, 0, 2, 14, 9, 0),
    *(0, 0, 0, 0, 11, 12, 1, 0),
    *(0, 0, 0, 1, 16, 5, 0, 0),
    *(0, 0, 0, 1, 14, 9, 0, 0),
    *(0, 0, 1, 4, 15, 9, 0, 0),
    *(0, 0, 7, 16, 11, 2, 0, 0),
)
SHADES = " .:-=+*#%@"
SCRIPT = """def best(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0].argmax(1)
"""

MODEL, IMAGE, SCORES, CHOOSER, DIGIT = KEYS = tuple(f"{{quickstart}}:{name}" for name in ("digits", "image", "scores", "choose", "digit"))
NUMBERS = tuple(map(str, PIXELS))
SET_IMAGE = ("AI.TENSORSET", IMAGE, "FLOAT", "1", "64", "VALUES", *NUMBERS)


@dataclass(frozen=True)
class Step:
    """One command. When a step with `needs` fails, that text says what is missing, and the tour goes on."""

    text: str
    words: tuple[str, ...]
    blob: bytes = b""  # after the last word
    file: str = ""  # what is shown in place of the blob
    needs: str = ""


def steps(backend: str) -> list[Step]:
    """The tour after the model was stored."""
    store_script = ("AI.SCRIPTSTORE", CHOOSER, "CPU", "ENTRY_POINTS", "1", "best", "SOURCE")
    without_torch = "scripts need PyTorch in the server: pip install 'redisai-server[torch]'"
    return [
        Step("A tensor is a key: a dtype, a shape and numbers. This one is an image of 8 x 8 pixels.", SET_IMAGE),
        Step("What is under it?", ("AI.TENSORGET", IMAGE, "META")),
        Step("A run takes keys and writes keys.", ("AI.MODELEXECUTE", MODEL, "INPUTS", "1", IMAGE, "OUTPUTS", "1", SCORES)),
        Step("The ten scores, one for each digit.", ("AI.TENSORGET", SCORES, "VALUES")),
        Step(
            "All of that in one round trip: what a DAG does not persist never becomes a key.",
            (
                *("AI.DAGEXECUTE_RO", "ROUTING", MODEL),
                *("|>", "AI.TENSORSET", "x", *SET_IMAGE[2:]),
                *("|>", "AI.MODELEXECUTE", MODEL, "INPUTS", "1", "x", "OUTPUTS", "1", "y"),
                *("|>", "AI.TENSORGET", "y", "META"),
            ),
        ),
        Step("Code can run beside the models: a script is TorchScript.", store_script, SCRIPT.encode(), "choose.py", without_torch),
        Step(
            "It finds the best score without moving the tensor.",
            ("AI.SCRIPTEXECUTE", CHOOSER, "best", "KEYS", "1", MODEL, "INPUTS", "1", SCORES, "OUTPUTS", "1", DIGIT),
            needs=without_torch,
        ),
        Step("Which digit is it?", ("AI.TENSORGET", DIGIT, "VALUES"), needs=without_torch),
        Step("Every model counts its runs: calls, errors, rows and microseconds.", ("AI.INFO", MODEL)),
    ]


class Tour:
    """Runs steps, shows them, and keeps what happened for --json."""

    def __init__(self, connection: Connection, quiet: bool, pauses: bool):
        self.connection = connection
        self.quiet = quiet
        self.pauses = pauses
        self.done: list[dict[str, Any]] = []

    def say(self, text: str, style: str = "") -> None:
        if not self.quiet:
            console().print(text, style=style, markup=False, soft_wrap=True)  # a command is one line, to be copied

    def call(self, step: Step) -> Any:
        """Raises OSError."""
        start = time.perf_counter()
        reply = self.connection.call(*step.words, *([step.blob] if step.blob else []))
        milliseconds = (time.perf_counter() - start) * 1000
        self.done.append({"command": shown(step, whole=True), "reply": plain(reply), "ms": milliseconds})
        self.say(f"\n{step.text}", "bold")
        self.say(f"> {shown(step)}", "cyan")
        self.say(for_terminal(reply).decode(errors="replace").rstrip("\n"), "red" if isinstance(reply, Failure) else "")
        self.say(f"({duration(milliseconds * 1000)})", "dim")
        return reply

    def wait(self) -> bool:
        """False when the reader has had enough."""
        if not self.pauses:
            return True
        click.echo("\nany key goes on, q ends ", nl=False)
        key = click.getchar()
        click.echo()
        return key not in ("q", "Q", "\x03", "\x04")


def shown(step: Step, whole: bool = False) -> str:
    """As one would type it; long rows of numbers are cut short unless `whole`."""
    words = " ".join(step.words)
    if not whole:
        words = words.replace(" ".join(NUMBERS), f"{' '.join(NUMBERS[:6])} ... {NUMBERS[-1]}")
    return f"{words} < {step.file}" if step.file else words


def picture() -> str:
    rows = ["".join(SHADES[int(pixel * (len(SHADES) - 1) / 16)] * 2 for pixel in PIXELS[at : at + 8]) for at in range(0, 64, 8)]
    return "\n".join(f"    |{row}|" for row in rows)


# ---- the tour ----------------------------------------------------------------------------------------------------------------------


def store_model(tour: Tour) -> str:
    """Stores the model for the first backend that the server has, and names it. Raises click.ClickException when it has none."""
    refused = []
    for backend, (file, options) in MODELS.items():
        words = ("AI.MODELSTORE", MODEL, backend, "CPU", *options, "BLOB")
        text = f"A model is a file under a key. The server opens it with {backend}, which the first model waits for."
        reply = tour.call(Step(text, words, (SAMPLES / file).read_bytes(), file))
        if not isinstance(reply, Failure):
            return backend
        if b"unknown command" in reply.text:
            raise click.ClickException(f"the server does not have the module\n  {NO_MODULE}")
        refused.append(f"{backend}: {reply.text.decode(errors='replace')}")
    raise click.ClickException("the server took none of the four formats:\n  " + "\n  ".join(refused))


def walk(tour: Tour) -> bool:
    """Whether every step did what it shows. Raises OSError, click.ClickException."""
    tour.say("A guided tour: models, tensors and scripts are keys, and commands run the one on the other.")
    backend = store_model(tour)
    well, lacking = True, ""
    for step in steps(backend):
        if step.needs and step.needs == lacking:
            continue
        if not tour.wait():
            return well
        reply = tour.call(step)
        if step.words == SET_IMAGE:
            tour.say(picture())
        if isinstance(reply, Failure):
            lacking = step.needs
            well = well and bool(step.needs)
            tour.say(step.needs)
    tour.say("\nYour own model: redisai store FILE, redisai run KEY. What a server does: redisai models, redisai top.", "bold")
    return well


@click.command("quickstart")
@click.option("-y", "--yes", "straight", is_flag=True, help="Do not stop between steps.  [default when piped]")
@click.option("--keep", is_flag=True, help="Leave the tour's keys.")
@click.option("--json", "as_json", is_flag=True, help="Commands, replies and times as JSON.")
@address_options
def command(straight: bool, keep: bool, as_json: bool, **where: Any) -> int:
    """A guided tour of a running server: each command, its reply and its time.

    It uses keys of its own, {quickstart}:*, and deletes them at the end.

    \b
    redisai serve --port 7000 &
    redisai quickstart -p 7000
    """
    target = address(**where)
    pauses = sys.stdin.isatty() and sys.stdout.isatty() and not straight and not as_json
    try:
        connection = target.connect()
    except (OSError, RefusedError) as error:
        raise click.ClickException(unreachable(target, error)) from None
    tour = Tour(connection, as_json, pauses)
    try:
        refuse_keys_that_exist(connection)
        try:
            well = walk(tour)
        finally:
            if not keep:
                connection.call("DEL", *KEYS)
    except OSError as error:
        raise click.ClickException(f"the server went away: {error}") from None
    finally:
        connection.close()
    if as_json:
        write_json({"ok": well, "steps": tour.done})
    elif not keep:
        write(b"(the tour's keys are deleted)\n")
    return int(not well)


def unreachable(target: Address, error: Exception) -> str:
    if isinstance(error, RefusedError):
        return f"{target}: {error}"
    return f"no server answers at {target}: {getattr(error, 'strerror', None) or error}\n  {NO_SERVER}"


def refuse_keys_that_exist(connection: Connection, keys: Sequence[str] = KEYS) -> None:
    """Raises click.ClickException, also for what the server says instead of a number."""
    found = connection.call("EXISTS", *keys)
    if isinstance(found, Failure):
        raise click.ClickException(found.text.decode(errors="replace"))
    if found:
        raise click.ClickException(
            f"{found} of the tour's keys exist here ({', '.join(keys)}): delete them, or take another database with -n"
        )
