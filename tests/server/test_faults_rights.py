"""Users with rights drawn at random against commands drawn at random: what one may do is what the rules of the server say, and no more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest
from runs import put, put_script, since_7, store
from servers import Server
from wire import OK, Error, Wire

pytestmark = since_7

R, W = frozenset("R"), frozenset("W")
RW = R | W

#: also names that are words of the grammar
NAMES = ("a1", "a2", "b1", "b2", "LOAD", "INPUTS", "OUTPUTS", "PERSIST", "|>x")
MODELS, SCRIPTS = ("ma", "mb"), ("sa", "sb")
PATTERNS = ("a*", "b*", "*1", "m*", "ma", "s*", "sb", "LOAD", "*PUTS", "P*", "|>*", "*")


class Drawn(NamedTuple):
    """A command, and for each key it names the access it needs."""

    words: list[str]
    keys: dict[str, frozenset[str]]


class User(NamedTuple):
    """The commands and the patterns that a user was given; `patterns` with their kinds of access."""

    commands: set[str]
    patterns: list[tuple[frozenset[str], str]]

    def may(self, drawn: Drawn) -> bool:
        """As the server decides: the command, and for each key one pattern that has all the access it needs."""
        if drawn.words[0].lower() not in self.commands:
            return False
        return all(any(need <= kinds and fnmatchcase(key, pattern) for kinds, pattern in self.patterns) for key, need in drawn.keys.items())

    def rules(self) -> list[str]:
        return ["-@all", *(f"+{name}" for name in self.commands), "resetkeys", *(f"%{''.join(sorted(k))}~{p}" for k, p in self.patterns)]


def need(*pairs: tuple[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Access by key; a key named twice needs both."""
    keys: dict[str, frozenset[str]] = {}
    for key, access in pairs:
        keys[key] = keys.get(key, frozenset()) | access
    return keys


def draw(rng: random.Random) -> Drawn:
    a, b, c = (rng.choice(NAMES) for _ in range(3))
    m, s = rng.choice(MODELS), rng.choice(SCRIPTS)
    run = f"AI.MODELEXECUTE {m} INPUTS 1 {a} OUTPUTS 1 {b}"
    dag = f"LOAD 1 {a} |> AI.MODELEXECUTE {m} INPUTS 1 {a} OUTPUTS 1 local |> AI.TENSORGET local VALUES"
    kept = f"LOAD 1 {a} PERSIST 1 {c} |> AI.MODELEXECUTE {m} INPUTS 1 {a} OUTPUTS 1 {c}"
    line, keys = rng.choice(
        [
            (f"AI.TENSORSET {a} DOUBLE 1 VALUES 1", need((a, W))),
            (f"AI.TENSORGET {a} VALUES", need((a, R))),
            (f"AI.MODELGET {m} META", need((m, R))),
            (f"AI.SCRIPTGET {s} META", need((s, R))),
            (f"AI.INFO {m}", need((m, R))),
            (run, need((m, R), (a, R), (b, W))),
            (f"{run} TIMEOUT 10000", need((m, R), (a, R), (b, W))),
            (f"AI.MODELRUN {m} INPUTS {a} OUTPUTS {b}", need((m, R), (a, R), (b, W))),
            (f"AI.SCRIPTEXECUTE {s} none KEYS 1 {c} INPUTS 1 {a} OUTPUTS 1 {b}", need((s, R), (c, RW), (a, R), (b, W))),
            (f"AI.DAGEXECUTE_RO {dag}", need((m, R), (a, R))),
            (f"AI.DAGRUN_RO {dag}".replace("AI.MODELEXECUTE", "AI.MODELRUN").replace("INPUTS 1", "INPUTS").replace("OUTPUTS 1", "OUTPUTS"),
             need((m, R), (a, R))),
            (f"AI.DAGEXECUTE {kept}", need((m, R), (a, R), (c, W))),
            (f"AI.DAGEXECUTE {kept} |> AI.SCRIPTEXECUTE {s} none INPUTS 1 {c} OUTPUTS 1 x", need((m, R), (a, R), (c, W), (s, R))),
        ]
    )  # fmt: skip
    return Drawn(line.split(), keys)


COMMANDS = """ai.tensorset ai.tensorget ai.modelget ai.scriptget ai.info ai.modelexecute ai.modelrun ai.scriptexecute ai.dagexecute_ro
    ai.dagrun_ro ai.dagexecute""".split()


def draw_user(rng: random.Random) -> User:
    commands = {name for name in COMMANDS if rng.random() < 0.8}
    kinds = (R, W, RW, RW)
    return User(commands, [(rng.choice(kinds), rng.choice(PATTERNS)) for _ in range(rng.randrange(1, 6))])


@pytest.fixture
def admin(server: Server) -> Iterator[Wire]:
    with Wire(server.port) as wire:
        yield wire
        wire("ACL", "DELUSER", "drawn")


def fill(admin: Wire) -> None:
    for name in NAMES:
        put(admin, name, 1, 2)
    for name in MODELS:
        store(admin, name)
    for name in SCRIPTS:
        put_script(admin, name)


def is_ambiguous(words: list[str]) -> bool:
    """The deprecated grammar ends its lists at a keyword, so that a tensor of that name means something else there."""
    return words[0] in ("AI.MODELRUN", "AI.DAGRUN_RO") and any(words.count(name) > 1 for name in ("INPUTS", "OUTPUTS"))


def test_random_users_may_do_what_their_rules_say_and_nothing_else(server: Server, admin: Wire) -> None:
    """2,000 commands of 100 users. Who is refused changes nothing and is told of nothing but the refusal; refusals are in ACL LOG."""
    rng = random.Random(5)
    fill(admin)
    allowed = refused = 0
    assert admin("ACL", "SETUSER", "drawn", "reset", "on", "nopass") == OK
    with Wire(server.port) as guest:
        assert guest("AUTH", "drawn", "x") == OK
        for _ in range(100):
            user = draw_user(rng)
            assert admin("ACL", "SETUSER", "drawn", *user.rules()) == OK
            before = admin("DEBUG", "DIGEST")
            for _ in range(20):
                drawn = draw(rng)
                if is_ambiguous(drawn.words):
                    continue
                reply = guest(*drawn.words)
                no = isinstance(reply, Error) and reply.text.startswith("NOPERM")
                assert no == (not user.may(drawn)), (drawn, user, reply)
                allowed, refused = allowed + (not no), refused + no
                if no:
                    assert admin("DEBUG", "DIGEST") == before, drawn
                before = admin("DEBUG", "DIGEST")
    assert allowed > 300 and refused > 300, (allowed, refused)
    assert any(b"drawn" in entry for entry in admin("ACL", "LOG"))


def test_scans_of_random_users_show_what_they_may_read(server: Server, admin: Wire) -> None:
    rng = random.Random(6)
    fill(admin)
    assert admin("ACL", "SETUSER", "drawn", "reset", "on", "nopass") == OK
    with Wire(server.port) as guest:
        assert guest("AUTH", "drawn", "x") == OK
        for _ in range(100):
            user = draw_user(rng)
            assert admin("ACL", "SETUSER", "drawn", *user.rules(), "+ai._modelscan", "+ai._scriptscan") == OK
            for scan, names in (("AI._MODELSCAN", MODELS), ("AI._SCRIPTSCAN", SCRIPTS)):
                readable = {name for name in names if any(kinds >= R and fnmatchcase(name, pattern) for kinds, pattern in user.patterns)}
                assert {key.decode() for key, _ in guest(scan)} == readable, user
