"""Every hash `doc:*` that is written gets a vector of its text: an AI flow embeds it in the server, with an ONNX sentence model.

    python examples/flow_embed.py --port 6379 [--model FILE.onnx --vocabulary FILE.txt] [QUESTION]

The server has to run flows (`FLOWS yes`). Whoever writes a document needs to know nothing of models: HSET is all. The flow cuts the text
into pieces of the vocabulary, which is a key, runs the model on the run queue of everybody else, and stores the vector in the hash, as
float32 bytes, where a search index would look for it. Its own write does not set it off again.

The question at the end is a document too; the nearest ones are found by their vectors.
"""

from __future__ import annotations

import argparse
import inspect
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis
from published import published
from similar_sentences import PACKAGE, SENTENCES, numbers, pieces, stands_alone, words

#: Runs in the server, after the functions of `similar_sentences` that cut sentences.
FLOW = """
import redisAI

@cache
def vocabulary():
    return {piece: number for number, piece in enumerate(execute("GET", "vocabulary").splitlines())}

def has_text(record):
    return record["type"] == "hash" and "text" in record["value"]

async def embed(record):
    row = numbers(record["value"]["text"])
    runner = redisAI.createModelRunner("sentences")
    redisAI.modelRunnerAddInput(runner, "ids", redisAI.createTensorFromValues("INT64", [1, len(row)], row))
    redisAI.modelRunnerAddInput(runner, "mask", redisAI.createTensorFromValues("INT64", [1, len(row)], [1] * len(row)))
    redisAI.modelRunnerAddOutput(runner, "vector")
    vector, = await redisAI.modelRunnerRunAsync(runner)
    execute("HSET", record["key"], "vector", redisAI.tensorGetDataAsBlob(vector))

GB("KeysReader", desc="a vector for each document").filter(has_text).foreach(embed).register("doc:*", eventTypes=["hset"])
"""
HEAD = """
from __future__ import annotations
import itertools, string, unicodedata
from functools import cache
BEGIN, END, UNKNOWN, LONGEST_WORD, LONGEST_SENTENCE = "[CLS]", "[SEP]", "[UNK]", 100, 256
"""
DESCRIPTION = b"a vector for each document"


def source() -> str:
    """The flow: a source is one text, so what it needs of other files goes into it."""
    return HEAD + "\n\n".join(inspect.getsource(function) for function in (words, stands_alone, pieces, numbers)) + FLOW


def prepare(client: redis.Redis, model: Path, vocabulary: Path) -> None:
    client.execute_command("AI.MODELSTORE", "sentences", "ONNX", "CPU", "BLOB", model.read_bytes())
    client.set("vocabulary", vocabulary.read_bytes())
    for row in client.execute_command("RG.DUMPREGISTRATIONS"):
        if row[5] == DESCRIPTION:  # of an earlier run of this example
            client.execute_command("RG.UNREGISTER", row[1])
    client.execute_command("RG.PYEXECUTE", source())


def vector(client: redis.Redis, key: str) -> Any:
    """The vector of a document, as soon as it is there."""
    while (blob := client.hget(key, "vector")) is None:
        time.sleep(0.001)
    return np.frombuffer(blob, np.float32)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description="Embed documents as they are written.")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--model", type=Path, help="an ONNX model: ids, mask -> vector")
    parser.add_argument("--vocabulary", type=Path, help="its vocabulary, a piece per line")
    parser.add_argument("question", nargs="?", default="How do I bake bread?")
    options = parser.parse_args()
    client = redis.Redis(port=options.port)
    prepare(client, options.model or published(PACKAGE, "minilm.onnx"), options.vocabulary or published(PACKAGE, "vocab.txt"))

    sentences = SENTENCES.strip().splitlines()
    for number, sentence in enumerate(sentences):
        client.delete(f"doc:{number}")
        client.hset(f"doc:{number}", "text", sentence)
    client.delete("doc:question")
    client.hset("doc:question", "text", options.question)
    vectors = np.stack([vector(client, f"doc:{number}") for number in range(len(sentences))])
    cosines = vectors @ vector(client, "doc:question")
    print(f"{len(sentences)} documents have vectors of {vectors.shape[1]} numbers")
    print(options.question)
    for place in np.argsort(-cosines)[:2]:
        print(f"  {cosines[place]:.2f}  {sentences[place]}")


if __name__ == "__main__":
    main()
