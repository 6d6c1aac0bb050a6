"""Scripts on a real server: redis.execute and its rights, redisAI.model_execute, the deprecated forms, what replicates and persists."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator

import pytest
import redis
from servers import MODELS, Server, default_binary, server_binaries, wait_until

pytestmark = pytest.mark.needs_torch
OK = b"OK"

REDIS = """
def run(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute(args[0], args[1:])
    return tensors

def text(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[0], str(redis.execute(args[0], args[1:])))

def integer(tensors: List[Tensor], keys: List[str], args: List[str]):
    v = redis.execute(args[0], args[1:])
    return torch.tensor(int(str(v)))

def styles(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[0], "varargs")
    redis.execute("SET", [keys[1], "list"])
    redis.execute("PING")
    redis.execute("INCRBY", keys[2], 5)
    redis.execute("SET", keys[3], 1.5)

def hash_to_tensor(tensors: List[Tensor], keys: List[str], args: List[str]):
    fields = redis.asList(redis.execute("HVALS", keys[0]))
    values: List[Tensor] = []
    for f in fields:
        values.append(torch.tensor(float(str(f))).reshape(1, 1))
    return torch.cat(values, dim=0)

def model(tensors: List[Tensor], keys: List[str], args: List[str]):
    return redisAI.model_execute(keys[0], tensors, 1)

def write_and_fail(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[0], "written")
    redis.execute("LPUSH", keys[0], "x")
    return tensors

def in_place(tensors: List[Tensor], keys: List[str], args: List[str]):
    tensors[0].add_(100)
    return tensors
"""
ENTRY_POINTS = [line.split("(")[0][4:] for line in REDIS.splitlines() if line.startswith("def ")]


def store(c: redis.Redis) -> None:
    assert c.execute_command("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", len(ENTRY_POINTS), *ENTRY_POINTS, "SOURCE", REDIS) == OK
    c.execute_command("AI.TENSORSET", "x", "FLOAT", 2, "VALUES", 1, 2)


def call(c: redis.Redis, function: str, *rest: object) -> object:
    return c.execute_command("AI.SCRIPTEXECUTE", "s", function, *rest)


def execute(c: redis.Redis, *command: object) -> object:
    """One Redis command from inside a script."""
    return call(c, "run", "INPUTS", 1, "x", "ARGS", len(command), *command)


@pytest.fixture
def c(real: redis.Redis) -> redis.Redis:
    store(real)
    return real


def test_the_multiply_script_of_the_introduction(real: redis.Redis) -> None:
    source = "def multiply(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0] * tensors[1]\n"
    assert real.execute_command("AI.SCRIPTSTORE", "myscript", "CPU", "ENTRY_POINTS", 1, "multiply", "SOURCE", source) == OK
    real.execute_command("AI.TENSORSET", "mytensor1", "FLOAT", 1, "VALUES", 40)
    real.execute_command("AI.TENSORSET", "mytensor2", "FLOAT", 1, "VALUES", 10)
    run = "AI.SCRIPTEXECUTE myscript multiply INPUTS 2 mytensor1 mytensor2 OUTPUTS 1 result"
    assert real.execute_command(*run.split()) == OK
    assert real.execute_command("AI.TENSORGET", "result", "BLOB") == struct.pack("<f", 400)
    assert real.execute_command("AI.INFO", "myscript")[13:16] == [-1, b"calls", 1]
    assert real.execute_command("AI.SCRIPTGET", "myscript", "SOURCE") == source.encode()


def test_both_call_styles_and_no_arguments_and_numbers(c: redis.Redis) -> None:
    assert call(c, "styles", "KEYS", 4, "a", "b", "n", "f") == OK
    assert (c.get("a"), c.get("b"), c.get("n"), c.get("f")) == (b"varargs", b"list", b"5", b"1.5")


def test_integers_have_64_bits(c: redis.Redis) -> None:
    c.set("big", 5_000_000_000)
    assert call(c, "integer", "INPUTS", 1, "x", "ARGS", 2, "INCR", "big", "OUTPUTS", 1, "n") == OK
    assert c.execute_command("AI.TENSORGET", "n", "BLOB") == struct.pack("<q", 5_000_000_001)


def test_a_hash_becomes_a_tensor_and_a_model_of_any_backend_scores_it(c: redis.Redis) -> None:
    c.hset("row", mapping={"a": 1, "b": 2})
    assert call(c, "hash_to_tensor", "KEYS", 1, "row", "OUTPUTS", 1, "column") == OK
    assert c.execute_command("AI.TENSORGET", "column", "META", "BLOB")[1::2] == [b"FLOAT", [2, 1], struct.pack("<2f", 1, 2)]
    c.execute_command("AI.TENSORSET", "pair", "FLOAT", 1, 2, "VALUES", 3, 4)
    for backend, file, names in (
        ("TORCH", "two_inputs.pt", []),
        ("ONNX", "two_inputs.onnx", []),
        ("TF", "two_inputs.pb", "INPUTS 2 a b OUTPUTS 1 mul".split()),
        ("TFLITE", "two_inputs.tflite", []),
    ):
        c.execute_command("AI.MODELSTORE", "m", backend, "CPU", *names, "BLOB", (MODELS / file).read_bytes())
        assert call(c, "model", "KEYS", 1, "m", "INPUTS", 2, "pair", "pair", "OUTPUTS", 1, "y") == OK, backend
        assert c.execute_command("AI.TENSORGET", "y", "BLOB") == struct.pack("<2f", 9, 16)
        assert c.execute_command("AI.INFO", "m")[15] == 1  # calls


def test_errors_of_commands_become_errors_of_the_script(c: redis.Redis) -> None:
    for command, sentence in (
        (("SET", "only-a-key"), "Redis command returned an error: Invalid argument"),
        (("NO_SUCH_COMMAND", "x"), "Redis command returned an error: No such file or directory"),
        (("LPUSH", "x", "y"), "Redis command returned an error: WRONGTYPE Operation against a key holding the wrong kind of value"),
    ):
        with pytest.raises(redis.ResponseError, match=sentence):
            execute(c, *command)
    with pytest.raises(redis.ResponseError, match="ERR model key is empty"):
        call(c, "model", "KEYS", 1, "nothing", "INPUTS", 1, "x", "OUTPUTS", 1, "y")


def test_what_was_written_before_an_error_stays(c: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        call(c, "write_and_fail", "KEYS", 1, "k", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
    assert c.get("k") == b"written"
    assert c.exists("y") == 0


def test_a_script_cannot_change_a_stored_tensor(c: redis.Redis) -> None:
    assert call(c, "in_place", "INPUTS", 1, "x", "OUTPUTS", 1, "y") == OK
    assert c.execute_command("AI.TENSORGET", "x", "BLOB") == struct.pack("<2f", 1, 2)
    assert c.execute_command("AI.TENSORGET", "y", "BLOB") == struct.pack("<2f", 101, 102)


def test_commands_run_in_the_database_of_the_caller(real_server: Server, c: redis.Redis) -> None:
    with real_server.client(db=3) as three:
        store(three)
        execute(three, "SET", "here", "3")
        assert three.get("here") == b"3"
        execute(three, "SELECT", "5")
        execute(three, "SET", "there", "3")
        assert three.get("there") == b"3"
        head = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n"
        both = head + "    redis.execute('SELECT', '5')\n    redis.execute('SET', keys[0], '3')\n"
        three.execute_command("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", both)
        assert call(three, "f", "KEYS", 1, "again") == OK
        assert three.get("again") == b"3"
    assert c.get("here") is None


@pytest.mark.parametrize(
    "command",
    [
        "AI.MODELEXECUTE m INPUTS 1 x OUTPUTS 1 y",
        "AI.SCRIPTEXECUTE s run INPUTS 1 x",
        "AI.DAGRUN |> AI.TENSORGET x VALUES",
        "AI.DAGRUN_RO |> AI.TENSORSET z FLOAT 1",
    ],
)
def test_runs_inside_a_script_are_refused(c: redis.Redis, command: str) -> None:
    with pytest.raises(redis.ResponseError, match="Cannot run RedisAI command within a transaction or a LUA script"):
        execute(c, *command.split())


def test_tensors_are_set_and_read_inside_a_script(c: redis.Redis) -> None:
    execute(c, "AI.TENSORSET", "made", "INT64", "2", "VALUES", "7", "8")
    assert c.execute_command("AI.TENSORGET", "made", "BLOB") == struct.pack("<2q", 7, 8)
    execute(c, "AI.TENSORGET", "made", "VALUES")


def test_deprecated_scripts_with_variadic_lists(real: redis.Redis) -> None:
    source = "def total(first, rest: List[Tensor]):\n    s = first\n    for r in rest:\n        s = s + r\n    return s\n"
    assert real.execute_command("AI.SCRIPTSET", "old", "CPU", "TAG", "t", "SOURCE", source) == OK
    for i in range(3):
        real.execute_command("AI.TENSORSET", f"t{i}", "FLOAT", 1, "VALUES", 10**i)
    assert real.execute_command(*"AI.SCRIPTRUN old total INPUTS t0 $ t1 t2 OUTPUTS y".split()) == OK
    assert real.execute_command("AI.TENSORGET", "y", "BLOB") == struct.pack("<f", 111)
    with pytest.raises(redis.ResponseError, match="Function does not exist: missing"):
        real.execute_command(*"AI.SCRIPTRUN old missing INPUTS t0 OUTPUTS y".split())


# ---- rights ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(real_server: Server, c: redis.Redis) -> Iterator[redis.Redis]:
    """A user who may run scripts, on keys that begin with b: and on the script, and GET and SET; nothing more."""
    rights = "on >pw resetkeys ~s ~x ~b:* -@all +ai.scriptexecute +get +set +incr +ping"
    c.execute_command("ACL", "SETUSER", "limited", "reset", *rights.split())
    with real_server.client(username="limited", password="pw") as client:
        yield client
    c.execute_command("ACL", "DELUSER", "limited")


def test_a_script_runs_with_the_rights_of_its_caller(c: redis.Redis, limited: redis.Redis) -> None:
    c.set("secret", "s3cr3t")
    execute(limited, "SET", "b:mine", "1")
    assert c.get("b:mine") == b"1"
    for command in (
        ("GET", "secret"),
        ("SET", "secret", "x"),
        ("DEL", "b:mine"),
        ("HGETALL", "b:h"),
        ("ACL", "SETUSER", "limited", "+@all"),
    ):
        with pytest.raises(redis.ResponseError, match=r"(?i)no permissions|not allowed from script"):
            execute(limited, *command)
    assert c.get("secret") == b"s3cr3t"
    with pytest.raises(redis.ResponseError, match=r"(?i)no permissions"):
        call(limited, "model", "KEYS", 1, "b:model", "INPUTS", 1, "secret")


def test_a_model_is_only_run_for_who_may_read_its_key(c: redis.Redis, limited: redis.Redis) -> None:
    source = "def go(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return redisAI.model_execute(args[0], tensors, 1)\n"
    c.execute_command("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "go", "SOURCE", source)
    for key in ("secretmodel", "b:model"):
        c.execute_command("AI.MODELSTORE", key, "ONNX", "CPU", "BLOB", (MODELS / "minimal.onnx").read_bytes())
    names = c.execute_command("AI.MODELGET", "b:model", "META")
    assert len(names[11]) >= 1
    with pytest.raises(redis.ResponseError, match=r"(?i)no permissions"):
        limited.execute_command("AI.SCRIPTEXECUTE", "s", "go", "INPUTS", 1, "x", "ARGS", 1, "secretmodel", "OUTPUTS", 1, "b:y")


@pytest.mark.parametrize("change", ["SETUSER limited -incr", "SETUSER limited resetkeys", "DELUSER limited"])
def test_rights_that_change_while_a_script_runs_count_at_the_next_call(
    real_server: Server, c: redis.Redis, limited: redis.Redis, change: str
) -> None:
    """Who deletes a user closes its clients as well: then there is nobody to tell, and the script still ends. A user who is switched off
    keeps what is open, in scripts as elsewhere in the server."""
    source = (
        "def spin(tensors: List[Tensor], keys: List[str], args: List[str]):\n"
        "    for i in range(1000000000):\n"
        "        redis.execute('INCR', args[0])\n"
    )
    c.execute_command("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", 1, "spin", "SOURCE", source)
    failure: list[str] = []

    def loop() -> None:
        try:
            with real_server.client(username="limited", password="pw", retry=None) as client:
                client.execute_command("AI.SCRIPTEXECUTE", "s", "spin", "INPUTS", 1, "x", "ARGS", 1, "b:count")
        except redis.RedisError as error:
            failure.append(str(error))

    thread = threading.Thread(target=loop)
    thread.start()
    wait_until(lambda: int(c.get("b:count") or 0) > 3, "the script to count")
    c.execute_command(*f"ACL {change}".split())
    thread.join(60)
    assert not thread.is_alive()
    assert failure and ("NOPERM" in failure[0] or "DELUSER" in change)
    wait_until(lambda: c.info("everything")["ai_jobs_in_flight"] == 0, "the end of the script")
    counted = c.get("b:count")
    assert c.execute_command("AI.INFO", "s")[17] == 1  # an error
    assert c.get("b:count") == counted


#: Takes part in a dialogue of its own with the client or is meant to end or reconfigure things: must be refused for everybody.
MUST_REFUSE = set(
    """shutdown debug monitor subscribe psubscribe ssubscribe multi exec watch eval evalsha wait blpop replicaof slaveof flushall flushdb
    sync psync acl|setuser config|set client|kill client|pause failover swapdb keys migrate restore script|flush function|load module|load
    cluster|failover bgsave save bgrewriteaof fcall quit reset hello auth""".split()
)


def commands_of(client: redis.Redis) -> list[tuple[str, int]]:
    """Every command and subcommand with its arity."""
    client.response_callbacks = {}
    found: list[tuple[str, int]] = []
    for row in client.execute_command("COMMAND"):
        found.append((row[0].decode(), abs(row[1])))
        found += [(sub[0].decode(), abs(sub[1])) for sub in (row[9] if len(row) > 9 else [])]
    return sorted(found)


@pytest.mark.parametrize("who", ["limited", "default"])
def test_no_command_ends_blocks_or_escapes(start_server: Callable[..., Server], who: str) -> None:
    """Each command of the server, from inside a script, with arguments that could work."""
    server = start_server(echo=False, binary=default_binary())
    with server.client() as admin:
        store(admin)
        rights = "on >pw resetkeys ~s ~x ~b:* -@all +ai.scriptexecute +get"
        admin.execute_command("ACL", "SETUSER", "limited", "reset", *rights.split())
        admin.set("secret", "s3cr3t")
        login = {"username": "limited", "password": "pw"} if who == "limited" else {}
        with server.client(**login, socket_timeout=30) as client, server.client() as lister:
            commands = commands_of(lister)
            assert len(commands) > 200
            outcomes: dict[str, str] = {}
            for name, arity in commands:
                words = name.split("|") + ["1", "secret", "0", "1", "1"][: max(0, arity - 1 - name.count("|"))]
                try:
                    execute(client, *words)
                    outcomes[name] = "ran"
                except redis.ResponseError as error:
                    outcomes[name] = str(error)
                assert admin.ping(), name
        known = MUST_REFUSE & outcomes.keys()
        assert len(known) > 25
        for name in known:
            assert any(text in outcomes[name] for text in ("not allowed from script", "NOPERM", "Redis command returned an error")), (
                name,
                outcomes[name],
            )
        if who == "limited":
            ran = {name for name, outcome in outcomes.items() if outcome == "ran"}
            assert ran <= {"get"}, ran
        assert admin.execute_command("ACL", "WHOAMI") in (b"default", "default")
        assert admin.get("secret") is not None
        assert server.alive()


#: Ways to a key that stands in another place than first, or in none that an access check sees.
DETOURS = """
get secret; set secret x; getex secret; substr secret 0 -1; exists secret; touch secret; type secret; object encoding secret
dump secret; copy secret b:d; rename secret b:d; renamenx b:x secret; move secret 1; mget b:x secret; mset b:x 1 secret 1
del b:x secret; unlink b:x secret; expire secret 1; persist secret; bitop and b:d b:x secret; bitfield secret get u8 0
bitcount secret; lcs b:x secret; sort b:list by nosort get secret; sort b:list by secret* get #; sort_ro b:list by nosort get secret
sort b:list store secret; zunionstore b:d 1 secretz; zunionstore secret 1 b:z; zunion 2 b:z secretz withscores; zdiff 1 secretz
zinter 1 secretz; zrangestore b:d secretz 0 -1; zmpop 1 secretz min; lmpop 1 secret left; sintercard 1 secret; sunionstore b:d secret
pfmerge b:d secret; pfcount b:x secret; georadius secretz 0 0 1 km store b:d; geosearchstore b:d secretz frommember x byradius 1 km
xread count 1 streams secret 0; xinfo stream secret; xrange secret - +; eval return(redis.call('get','secret')) 0; memory usage secret
eval_ro return(redis.call('get',KEYS[1])) 1 secret; fcall f 1 secret; restore b:d 0 secret; getset b:x secret; setrange secret 0 x
ai.tensorget secrett values; ai.tensorset secret INT8 1; ai.modelget secretm blob; ai.modelget secretm; ai.modeldel secretm
ai.modelstore secret ONNX CPU BLOB x; ai.modelexecute secretm INPUTS 1 secrett OUTPUTS 1 b:d; ai.info secretm; ai.scriptget secret source
ai.scriptdel secret; ai.dagrun_ro LOAD 1 secrett |> AI.TENSORGET secrett; ai._modelscan; ai._scriptscan
"""
SECRETS = ("secret", "secretz", "secrett", "secretm")


def test_no_command_reaches_a_key_that_its_caller_may_not(real_server: Server, real: redis.Redis) -> None:
    """Every command of the server with the forbidden key as each argument, by a user who may run any command on keys of his own; whatever
    it answers is kept, and holds nothing of the secret."""

    def fill() -> list[bytes | None]:
        real.flushall()
        store(real)
        real.mset({"secret": "s3cr3t", "b:x": "x"})
        real.zadd("secretz", {"s3cr3t": 1})
        real.zadd("b:z", {"x": 1})
        real.rpush("b:list", "x")
        real.execute_command("AI.TENSORSET", "secrett", "STRING", 1, "VALUES", "s3cr3t")
        model = (MODELS / "minimal.onnx").read_bytes()
        real.execute_command("AI.MODELSTORE", "secretm", "ONNX", "CPU", "TAG", "s3cr3t", "BLOB", model)
        return [real.dump(key) for key in SECRETS]

    before, ran = fill(), 0
    real.execute_command("ACL", "SETUSER", "limited", "reset", *"on >pw ~s ~x ~b:* +@all".split())
    with real_server.client(username="limited", password="pw") as client, real_server.client() as lister:
        every = [
            [*name.split("|"), *["secret"] * (arity - 1 - name.count("|") + more)] for name, arity in commands_of(lister) for more in (0, 2)
        ]
        for words in [*every, *(line.split() for line in DETOURS.replace("\n", ";").split(";") if line.strip())]:
            try:
                call(client, "text", "KEYS", 1, "b:answer", "ARGS", len(words), *words)
                answer = str(real.get("b:answer"))
                ran += 1
            except redis.ResponseError as error:
                answer = str(error)
            assert "s3cr3t" not in answer, (words, answer)
            with real.pipeline(transaction=False) as look:
                for key in SECRETS:
                    look.dump(key)
                look.exists("b:x", "b:z", "b:list", "s", "x")
                *dumps, left = look.execute()
            assert dumps == before, words
            if left < 5:
                fill()
    real.execute_command("ACL", "DELUSER", "limited")
    assert ran > 5  # PING and the like


@pytest.mark.parametrize("name", [name for name in server_binaries() if "valkey" in name][:1])
def test_no_error_of_a_command_ends_valkey(start_server: Callable[..., Server], name: str) -> None:
    """Valkey 9.1 reads an error reply that it did not make, unless it is told to make them."""
    with start_server(echo=False, binary=server_binaries()[name]).client() as c:
        store(c)
        for command, text in (
            (("SET", "only-a-key"), "Invalid argument"),
            (("NO_SUCH_COMMAND", "x"), "No such file or directory"),
            (("LPUSH", "x", "y"), "WRONGTYPE"),
            (("INCRBYFLOAT", "n", "z"), "ERR value is not a valid float"),
            (("AI.MODELEXECUTE", "m"), "ERR Cannot run RedisAI command within a transaction or a LUA script"),
        ):
            with pytest.raises(redis.ResponseError, match=f"Redis command returned an error: {text}"):
                execute(c, *command)


# ---- replies of every kind and size ---------------------------------------------------------------------------------------------

ECHO = """
def copy(tensors: List[Tensor], keys: List[str], args: List[str]):
    redis.execute("SET", keys[1], str(redis.execute("GET", keys[0])))

def copy_list(tensors: List[Tensor], keys: List[str], args: List[str]):
    for item in redis.asList(redis.execute("LRANGE", keys[0], 0, -1)):
        redis.execute("RPUSH", keys[1], item)

def length(tensors: List[Tensor], keys: List[str], args: List[str]):
    return torch.tensor(len(redis.asList(redis.execute(args[0], args[1:]))))

def missing(tensors: List[Tensor], keys: List[str], args: List[str]):
    v = redis.execute("GET", keys[0])
    return torch.tensor(1 if v is None else 0)

def leaf(tensors: List[Tensor], keys: List[str], args: List[str]):
    entry = redis.asList(redis.asList(redis.execute("XRANGE", keys[0], "-", "+"))[0])
    redis.execute("SET", keys[1], str(redis.asList(entry[1])[1]))
"""


@pytest.fixture
def e(real: redis.Redis) -> redis.Redis:
    names = [line.split("(")[0][4:] for line in ECHO.splitlines() if line.startswith("def ")]
    assert real.execute_command("AI.SCRIPTSTORE", "s", "CPU", "ENTRY_POINTS", len(names), *names, "SOURCE", ECHO) == OK
    return real


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", bytes(range(256)) * 3, b"\r\n+OK\r\n", b"a\0b", b"x" * (8 << 20), b"\xff" * (64 << 10)],
    ids=lambda v: f"{v[:6]!r}-{len(v)}",
)
def test_a_string_passes_through_a_script_to_the_byte(e: redis.Redis, value: bytes) -> None:
    e.set("from", value)
    assert call(e, "copy", "KEYS", 2, "from", "to") == OK
    assert e.get("to") == value
    e.rpush("list", value, b"x", value)
    assert call(e, "copy_list", "KEYS", 2, "list", "second") == OK
    assert e.lrange("second", 0, -1) == [value, b"x", value]
    e.xadd("stream", {b"field": value}, id="1-1")
    assert call(e, "leaf", "KEYS", 2, "stream", "to") == OK
    assert e.get("to") == value


def test_what_is_not_there_is_none_and_what_is_long_is_whole(e: redis.Redis) -> None:
    def number(*words: object) -> int:
        assert call(e, *words, "OUTPUTS", 1, "n") == OK
        return struct.unpack("<q", e.execute_command("AI.TENSORGET", "n", "BLOB"))[0]

    assert number("missing", "KEYS", 1, "none") == 1
    e.set("some", "")
    assert number("missing", "KEYS", 1, "some") == 0
    with e.pipeline() as many:
        many.rpush("long", *range(100_000))
        many.execute()
    assert number("length", "KEYS", 1, "long", "ARGS", 4, "LRANGE", "long", 0, -1) == 100_000
    assert number("length", "KEYS", 1, "none", "ARGS", 3, "MGET", "none", "some") == 2
    assert number("length", "KEYS", 1, "none", "ARGS", 4, "LRANGE", "none", 0, -1) == 0


# ---- replication and persistence ----------------------------------------------------------------------------------------------


def test_writes_of_scripts_replicate_and_persist(start_server: Callable[..., Server]) -> None:
    master = start_server("--appendonly", "yes", "--aof-use-rdb-preamble", "no", echo=False)
    replica = start_server("--replicaof", "127.0.0.1", str(master.port), echo=False)
    with master.client() as m, replica.client() as r:
        wait_until(lambda: r.info("replication")["master_link_status"] == "up", "the link")
        store(m)
        execute(m, "SET", "written", "by a script")
        assert call(m, "run", "INPUTS", 1, "x", "ARGS", 2, "INCR", "n", "OUTPUTS", 1, "out") == OK
        wait_until(lambda: r.exists("written", "n", "out") == 3, "the writes on the replica")
        with pytest.raises(redis.ReadOnlyError):
            execute(r, "SET", "a", "b")
    master.restart()
    with master.client() as m:
        assert (m.get("written"), m.get("n"), m.exists("out")) == (b"by a script", b"1", 1)


def test_a_script_waits_while_writes_are_paused(start_server: Callable[..., Server]) -> None:
    server = start_server("--appendonly", "yes", echo=False)
    with server.client() as admin, server.client() as client:
        source = (
            "def twice(tensors: List[Tensor], keys: List[str], args: List[str]):\n"
            "    for i in range(1000000000):\n"
            "        if int(str(redis.execute('EXISTS', keys[0]))) == 1:\n"
            "            break\n"
            "    redis.execute('SET', keys[1], 'after')\n"
        )
        store(admin)
        admin.execute_command("AI.SCRIPTSTORE", "w", "CPU", "ENTRY_POINTS", 1, "twice", "SOURCE", source)
        done: list[object] = []
        thread = threading.Thread(
            target=lambda: done.append(client.execute_command("AI.SCRIPTEXECUTE", "w", "twice", "KEYS", 2, "go", "k"))
        )
        thread.start()
        wait_until(lambda: admin.info("everything")["ai_queue_CPU_idle_workers"] == 0, "the start of the script")
        with admin.pipeline(transaction=True) as both:  # the script sees the signal only once the pause has begun
            both.set("go", "1")
            both.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
            both.execute()
        thread.join(0.5)
        assert thread.is_alive() and not done
        assert admin.get("k") is None
        admin.execute_command("CLIENT", "UNPAUSE")
        thread.join(60)
        assert done == [OK]
        assert admin.get("k") == b"after"
