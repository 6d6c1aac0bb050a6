"""The first steps as the introduction of RedisAI prints them, typed into a shell: two tensors, a graph that multiplies them, 6 and 15.

With the installed redis-cli where there is one, and with `redisai cli`, which stands in for it where there is none.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
from servers import MODELS, ROOT, Server

pytestmark = pytest.mark.needs_tf
Type = Callable[[str], str]

CLIENTS = {"redis-cli": "redis-cli", "redisai cli": f"{shlex.quote(sys.executable)} -m redisai_py cli"}


@pytest.fixture(params=CLIENTS)
def typed(request: pytest.FixtureRequest, real_server: Server) -> Type:
    """Types a line into a shell, where `redis-cli` is the client under test, and returns what it prints."""
    if request.param == "redis-cli" and not shutil.which("redis-cli"):
        pytest.skip("redis-cli is not installed")
    command = (
        f'redis-cli() {{ {"command " if request.param == "redis-cli" else ""}{CLIENTS[request.param]} -p {real_server.port} "$@"; }}\n'
    )

    def run(line: str) -> str:
        program = ["bash", "-c", f"export PYTHONPATH={shlex.quote(str(ROOT))}; cd {shlex.quote(str(MODELS))}; {command}{line}"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and not done.stderr, done
        return done.stdout

    return run


def test_the_introduction_as_printed(typed: Type) -> None:
    assert typed("redis-cli AI.TENSORSET tA FLOAT 2 VALUES 2 3") == "OK\n"
    assert typed("redis-cli AI.TENSORSET tB FLOAT 2 VALUES 3 5") == "OK\n"
    assert typed("redis-cli AI.TENSORGET tA VALUES") == "2\n3\n"
    assert typed("redis-cli AI.TENSORGET tB META VALUES") == "dtype\nFLOAT\nshape\n2\nvalues\n3\n5\n"
    assert typed("cat graph.pb | redis-cli -x AI.MODELSTORE mymodel TF CPU INPUTS 2 a b OUTPUTS 1 c BLOB") == "OK\n"
    assert typed("redis-cli AI.MODELEXECUTE mymodel INPUTS 2 tA tB OUTPUTS 1 tResult") == "OK\n"
    assert typed("redis-cli AI.TENSORGET tResult VALUES") == "6\n15\n"
    assert typed("redis-cli AI.MODELGET mymodel META").startswith("backend\nTF\ndevice\nCPU\ntag\n")
    assert typed("redis-cli --raw AI.MODELGET mymodel BLOB | cmp -n $(stat -c %s graph.pb) - graph.pb && echo same") == "same\n"


def test_the_introduction_in_the_older_commands(typed: Type) -> None:
    """MODELSET has no counts, MODELRUN runs."""
    typed("redis-cli AI.TENSORSET tA FLOAT 2 VALUES 2 3")
    typed("redis-cli AI.TENSORSET tB FLOAT 2 VALUES 3 5")
    assert typed("redis-cli -x AI.MODELSET mymodel TF CPU INPUTS a b OUTPUTS c BLOB < graph.pb") == "OK\n"
    assert typed("redis-cli AI.MODELRUN mymodel INPUTS tA tB OUTPUTS tResult") == "OK\n"
    assert typed("redis-cli AI.TENSORGET tResult VALUES") == "6\n15\n"


def test_what_is_shown_on_a_terminal(typed: Type) -> None:
    """`--no-raw` is the form that the introduction shows."""
    typed("redis-cli AI.TENSORSET tA FLOAT 2 VALUES 2 3")
    assert typed("redis-cli --no-raw AI.TENSORGET tA VALUES") == '1) "2"\n2) "3"\n'
    assert typed("redis-cli --no-raw AI.MODELEXECUTE missing INPUTS 1 tA OUTPUTS 1 t || true") == "(error) ERR model key is empty\n"
