"""`redisai cli` prints what redis-cli prints: by a table where no redis-cli is needed, and against the real one where it is installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisai_py.cli import replies
from redisai_py.cli.resp import Collection, Failure, Number, Status, Verbatim
from redisai_py.cli.words import split
from redisai_py.install import ServerNotFoundError, find_server

TABLE: list[tuple[Any, str, str | None, Any]] = [
    # reply, for a terminal, raw, JSON
    (Status(b"OK"), "OK\n", "OK", "OK"),
    (Failure(b"ERR no"), "(error) ERR no\n", "ERR no\n", {"error": "ERR no"}),
    (7, "(integer) 7\n", "7", 7),
    (True, "(true)\n", "(true)", True),
    (None, "(nil)\n", "", None),
    (b'a "b"\n\x00\xff', '"a \\"b\\"\\n\\x00\\xff"\n', None, 'a "b"\n\x00\xff'),
    (Number("double", b"0.5"), "(double) 0.5\n", "0.5", 0.5),
    (Number("double", b"inf"), "(double) inf\n", "inf", "inf"),
    (Number("big", b"123456789012345678901"), "123456789012345678901\n", "123456789012345678901", 123456789012345678901),
    (Verbatim(b"two\nlines"), "two\nlines\n", "two\nlines", "two\nlines"),
    ([], "(empty array)\n", "", []),
    ([b"a", [1, []], None], '1) "a"\n2) 1) (integer) 1\n   2) (empty array)\n3) (nil)\n', "a\n1\n\n", ["a", [1, []], None]),
    (list(range(10)), " 1) (integer) 0\n", None, list(range(10))),
    (
        Collection("hash", [b"k", 1, b"l", [b"x", b"y"]]),
        '1# "k" => (integer) 1\n2# "l" => \n   1) "x"\n   2) "y"\n',
        "k 1\nl x\ny",
        {"k": 1, "l": ["x", "y"]},
    ),
    (Collection("set", [b"k"]), '1~ "k"\n', "k", ["k"]),
    (Collection("hash", []), "(empty hash)\n", "", {}),
]


@pytest.mark.parametrize(("reply", "terminal", "raw", "plain"), TABLE)
def test_each_kind_of_reply_has_its_three_forms(reply: Any, terminal: str, raw: str | None, plain: Any) -> None:
    assert replies.for_terminal(reply).decode("latin-1").startswith(terminal)
    if raw is not None:
        assert replies.raw(reply).decode() == raw
    assert json.loads(replies.as_json(reply)) == plain


@given(st.lists(st.binary(), max_size=5))
def test_a_quoted_string_can_be_typed_back(arguments: list[bytes]) -> None:
    line = b" ".join(map(replies.quoted, arguments)).decode("ascii")
    assert split(line) == arguments


@pytest.mark.parametrize(("line", "words"), [("a  'it\\'s' b", [b"a", b"it's", b"b"]), ("", []), ("x\té", [b"x", "é".encode()])])
def test_words_are_split_as_typed(line: str, words: list[bytes]) -> None:
    assert split(line) == words


@pytest.mark.parametrize("line", ['"a', "a'b'", '"a"b', "it's"])
def test_quotes_that_do_not_close_around_a_word_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="Invalid argument"):
        split(line)


# ---- against the real one ----------------------------------------------------------------------------------------------------------

SESSION = """
SET a "x\\x00\\ny \\"q\\" \\\\ é"
GET a
GET nothing
INCR n
LPUSH l 1 2 3 4 5 6 7 8 9 10 11
LRANGE l 0 -1
EVAL "return {1,{2,{'a',3},{}},'b',{},redis.status_reply('st')}" 0
LRANGE none 0 -1
FOO bar
HSET h f1 v1 f2 v2
HGETALL h
HGETALL none
SADD s x
SMEMBERS s
ZADD z 1.5 m
ZSCORE z m
CONFIG GET maxmemory-*
COMMAND INFO get
GET it's
INFO keyspace
MULTI
SET a 1
EXEC
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    try:
        server = find_server()
    except ServerNotFoundError:
        pytest.skip("no server here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    line = [str(server.path), "--port", str(number), "--save", "", "--dir", str(tmp_path_factory.mktemp("server"))]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", number)) == 0:
                    break
            time.sleep(0.01)
        yield number
        process.terminate()


def run(program: list[str], *arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*program, *arguments], input=typed, capture_output=True, check=False, timeout=60)


OURS = [sys.executable, "-m", "redisai_py", "cli"]


@pytest.mark.skipif(not shutil.which("redis-cli"), reason="redis-cli is not installed")
@pytest.mark.parametrize("options", [[], ["--raw"], ["--no-raw"], ["-3", "--raw"], ["-3", "--no-raw"]], ids=" ".join)
def test_a_session_reads_the_same_from_redis_cli(port: int, options: list[str]) -> None:
    seen = []
    for program in (["redis-cli"], OURS):
        assert run(program, "-p", str(port), "FLUSHALL").returncode == 0
        seen.append(run(program, "-p", str(port), *options, typed=SESSION.encode()).stdout)
    assert seen[1] == seen[0]
    assert len(seen[0].splitlines()) > 40


def test_the_last_argument_can_come_from_standard_input(port: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * 300
    assert run(OURS, "-p", str(port), "-x", "SET", "k", typed=data).stdout == b"OK\n"
    assert run(OURS, "-p", str(port), "GET", "k").stdout == data + b"\n"


def test_an_error_reply_ends_with_status_1_when_asked(port: int) -> None:
    assert run(OURS, "-p", str(port), "FOO").returncode == 0
    assert run(OURS, "-p", str(port), "-e", "FOO").returncode == 1


def test_a_server_that_does_not_answer_is_status_1_and_says_where() -> None:
    done = run(OURS, "-p", "1", "PING")
    assert done.returncode == 1
    assert b"Could not connect to Redis at 127.0.0.1:1: Connection refused" in done.stderr


def test_a_reader_that_goes_away_is_no_failure(port: int) -> None:
    script = f"{' '.join(OURS)} -p {port} -r 2000 LRANGE nothing 0 -1 | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
