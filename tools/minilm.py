"""Writes all-MiniLM-L6-v2 as TorchScript and as ONNX, from the weights that a package publishes.

    python tools/minilm.py WEIGHTS.safetensors FOLDER       # needs torch, safetensors and onnx; tools/real_models.py calls it

The weights come without a program. It is BERT as it was published, written so that the names of its parts are those of the weights; behind
it stand the two steps that make one vector of a sentence: the mean over its words, brought to length 1. Both files take

    ids   INT64 [sentences, words]   numbers of word pieces, 101 first, 102 last, 0 behind the end of a shorter sentence
    mask  INT64 [sentences, words]   1 where there is a piece, 0 behind the end

and return FLOAT [sentences, 384]: the cosine of two sentences is the dot product of their rows.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

VOCABULARY, POSITIONS, WIDTH, INNER, HEADS, LAYERS, EPSILON = 30522, 512, 384, 1536, 12, 6, 1e-12
#: Two sentences of different lengths: what the model is traced with.
SAMPLE = (torch.tensor([[101, 7592, 2088, 102], [101, 7592, 102, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, eps=EPSILON)


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = norm()

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.size(1), device=ids.device)
        first = self.token_type_embeddings.weight[0]  # there is no second sentence to tell apart
        summed: Tensor = self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(positions) + first)
        return summed


class Attention(nn.Module):
    """Self-attention, and the sum with what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.self = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH), "LayerNorm": norm()})

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        rows, words, _ = states.shape
        query, key, value = (
            self.self[name](states).view(rows, words, HEADS, WIDTH // HEADS).transpose(1, 2) for name in ("query", "key", "value")
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + bias, dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(rows, words, WIDTH)
        summed: Tensor = self.output["LayerNorm"](self.output["dense"](mixed) + states)
        return summed


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = nn.ModuleDict({"dense": nn.Linear(INNER, WIDTH), "LayerNorm": norm()})

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        states = self.attention(states, bias)
        inner = nn.functional.gelu(self.intermediate["dense"](states))
        summed: Tensor = self.output["LayerNorm"](self.output["dense"](inner) + states)
        return summed


class MiniLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([Layer() for _ in range(LAYERS)])})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        there = mask.to(torch.float32)
        bias = (there[:, None, None, :] - 1) * 1e4  # no word looks behind the end of its sentence
        states = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            states = layer(states, bias)
        mean = (states * there[:, :, None]).sum(dim=1) / there.sum(dim=1, keepdim=True)
        return nn.functional.normalize(mean, dim=1)


def opened(weights: Path) -> MiniLM:
    """Raises RuntimeError for weights of another network."""
    state = load_file(weights)
    unused = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}  # of the task it was first trained for
    model = MiniLM()
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in unused})
    model.eval()
    return model


def write(model: MiniLM, folder: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package says that there is another
        traced = torch.jit.trace(model, SAMPLE)
        torch.jit.save(traced, folder / "minilm.pt")
        torch.onnx.export(
            model,
            SAMPLE,
            folder / "minilm.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["ids", "mask"],
            output_names=["vectors"],
            dynamic_axes={"ids": {0: "n", 1: "words"}, "mask": {0: "n", 1: "words"}, "vectors": {0: "n"}},
        )


def main(argv: Sequence[str]) -> None:
    weights, folder = map(Path, argv)
    write(opened(weights), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
