"""What a client sees must not depend on how the server is deployed: the same flows under RLTest, stand-alone, with an AOF, with a replica.

Run by tests/server/test_flow_modes.py; by hand, with REDISAI_TEST_BACKEND=echo in the environment:
`python -m RLTest --module redisai_py/redisai.so -t tests/flow/test_flow.py [--use-aof|--use-slaves]`
"""

import json

import numpy as np

ADD = json.dumps({"op": "add", "inputs": 2, "outputs": 1})
ECHO = json.dumps({"op": "echo", "inputs": 1, "outputs": 1})


def on_the_replica(env, check):
    """Runs `check(client)` on the replica once it has caught up, where the mode has one; and after a reload of what was persisted."""
    env.dumpAndReload()
    check(env.getConnection())
    if env.useSlaves:
        master = env.getConnection()
        env.assertTrue(master.wait(1, 10000) >= 1)
        check(env.getSlaveConnection())


def values(client, key):
    dtype, shape, blob = client.execute_command("AI.TENSORGET", key, "META", "BLOB")[1::2]
    return dtype, shape, blob


def test_tensors_of_every_dtype_survive(env):
    con = env.getConnection()
    rng = np.random.default_rng(1)
    written = {}
    for dtype, kind in (("FLOAT", "<f4"), ("DOUBLE", "<f8"), ("INT8", "i1"), ("INT16", "<i2"), ("INT32", "<i4"), ("INT64", "<i8")):
        blob = rng.integers(-100, 100, (3, 4)).astype(kind).tobytes()
        con.execute_command("AI.TENSORSET", "t:" + dtype, dtype, 3, 4, "BLOB", blob)
        written[dtype] = ([3, 4], blob)
    for dtype, kind in (("UINT8", "u1"), ("UINT16", "<u2")):
        blob = rng.integers(0, 100, (2, 5)).astype(kind).tobytes()
        con.execute_command("AI.TENSORSET", "t:" + dtype, dtype, 2, 5, "BLOB", blob)
        written[dtype] = ([2, 5], blob)
    con.execute_command("AI.TENSORSET", "t:BOOL", "BOOL", 4, "BLOB", b"\x00\x01\x01\x00")
    written["BOOL"] = ([4], b"\x00\x01\x01\x00")
    con.execute_command("AI.TENSORSET", "t:STRING", "STRING", 2, "VALUES", "first", "second")
    written["STRING"] = ([2], b"first\0second\0")
    con.execute_command("AI.TENSORSET", "t:SCALAR", "FLOAT", "VALUES", "1.5")

    def check(client):
        for dtype, (shape, blob) in written.items():
            env.assertEqual(values(client, "t:" + dtype), (dtype.encode(), shape, blob))
        env.assertEqual(client.execute_command("AI.TENSORGET", "t:SCALAR", "META"), [b"dtype", b"FLOAT", b"shape", []])

    on_the_replica(env, check)


def test_outputs_of_a_run_arrive_everywhere(env):
    con = env.getConnection()
    con.execute_command("AI.MODELSTORE", "add", "TORCH", "CPU", "TAG", "v1", "BLOB", ADD)
    con.execute_command("AI.TENSORSET", "a", "FLOAT", 2, "VALUES", 1, 2)
    con.execute_command("AI.TENSORSET", "b", "FLOAT", 2, "VALUES", 3, 4)
    env.assertEqual(con.execute_command("AI.MODELEXECUTE", "add", "INPUTS", 2, "a", "b", "OUTPUTS", 1, "c"), b"OK")

    def check(client):
        env.assertEqual(values(client, "c"), (b"FLOAT", [2], np.array([4, 6], "<f4").tobytes()))

    on_the_replica(env, check)


def test_persisted_results_of_a_dag_arrive_and_others_do_not(env):
    con = env.getConnection()
    con.execute_command("AI.MODELSTORE", "echo", "ONNX", "CPU", "BLOB", ECHO)
    dag = ["AI.DAGEXECUTE", "PERSIST", 1, "out"]
    dag += ["|>", "AI.TENSORSET", "in", "INT64", 1, "VALUES", 7]
    dag += ["|>", "AI.MODELEXECUTE", "echo", "INPUTS", 1, "in", "OUTPUTS", 1, "out"]
    dag += ["|>", "AI.TENSORGET", "out", "VALUES"]
    env.assertEqual(con.execute_command(*dag), [b"OK", b"OK", [7]])

    def check(client):
        env.assertEqual(values(client, "out"), (b"INT64", [1], (7).to_bytes(8, "little")))
        env.assertEqual(client.exists("in"), 0)

    on_the_replica(env, check)


def test_models_survive_with_their_options_and_run_again(env):
    con = env.getConnection()
    args = ["TAG", "v2", "BATCHSIZE", 8, "MINBATCHSIZE", 1, "MINBATCHTIMEOUT", 5]
    con.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", *args, "BLOB", ECHO[:10], ECHO[10:])

    def check(client):
        meta = dict(zip(*[iter(client.execute_command("AI.MODELGET", "m", "META"))] * 2, strict=True))
        env.assertEqual((meta[b"tag"], meta[b"batchsize"], meta[b"minbatchsize"], meta[b"minbatchtimeout"]), (b"v2", 8, 1, 5))
        env.assertEqual(client.execute_command("AI.MODELGET", "m", "BLOB"), ECHO.encode())

    on_the_replica(env, check)
    con = env.getConnection()
    con.execute_command("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 2.5)
    env.assertEqual(con.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y"), b"OK")
    env.assertEqual(con.execute_command("AI.TENSORGET", "y", "VALUES"), [b"2.5"])


def test_deletions_arrive(env):
    con = env.getConnection()
    con.execute_command("AI.MODELSTORE", "gone", "ONNX", "CPU", "BLOB", ECHO)
    con.execute_command("AI.MODELDEL", "gone")
    con.execute_command("AI.TENSORSET", "t", "FLOAT", 1, "VALUES", 1)
    con.delete("t")
    on_the_replica(env, lambda client: env.assertEqual(client.exists("gone", "t"), 0))


def test_stores_inside_a_transaction_arrive(env):
    con = env.getConnection()
    with con.pipeline(transaction=True) as transaction:
        transaction.execute_command("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 3)
        transaction.execute_command("AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", ECHO)
        env.assertEqual(transaction.execute(), [b"OK", b"OK"])
    on_the_replica(env, lambda client: env.assertEqual(client.exists("x", "m"), 2))
    con = env.getConnection()
    env.assertEqual(con.execute_command("AI.MODELEXECUTE", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y"), b"OK")


def test_a_failing_run_changes_nothing_anywhere(env):
    con = env.getConnection()
    con.execute_command(
        "AI.MODELSTORE", "bad", "ONNX", "CPU", "BLOB", json.dumps({"op": "raise", "inputs": 1, "outputs": 1, "text": "broken"})
    )
    con.execute_command("AI.TENSORSET", "x", "FLOAT", 1, "VALUES", 1)
    env.expect("AI.MODELEXECUTE", "bad", "INPUTS", 1, "x", "OUTPUTS", 1, "y").error()
    on_the_replica(env, lambda client: env.assertEqual(client.exists("y"), 0))
