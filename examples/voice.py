"""Finds speech in a recording: Silero VAD, published for two backends, which give the same answer.

    python examples/voice.py --port 6379 [RECORDING.wav]

A wav file of 16 kHz, one channel, 16 bits. Without one, three hummed vowels between two seconds of noise are used.

Each step takes 32 ms of sound and remembers something of what came before. The ONNX model gives that memory back as an output, which is the
next step's input: it stays in the server, and any number of recordings may be under way. The TorchScript model keeps it inside, so it can
follow one recording only.
"""

from __future__ import annotations

import argparse
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import redis
from published import published

RATE, STEP, OVERLAP = 16000, 512, 64  # samples: per second, per step, and of the step before that the ONNX model sees again
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240))  # Hz: the resonances of ah, ee, oo
Sound = np.ndarray[Any, Any]  # float32, from -1 to 1


def hummed() -> Sound:
    """Two seconds of noise with half a second of each vowel in between: harmonics of a voice of 120 Hz, loudest near the resonances."""
    time = np.arange(RATE // 2) / RATE
    pitch = 120 * (1 + 0.08 * np.sin(2 * np.pi * 3 * time))
    voice = np.concatenate([vowel(resonances, pitch) for resonances in VOWELS])
    silence = np.zeros(RATE)
    sound = np.concatenate([silence, 0.3 * voice / np.abs(voice).max(), silence])
    return (sound + 0.003 * np.random.default_rng(0).standard_normal(len(sound))).astype(np.float32)


def vowel(resonances: tuple[int, ...], pitch: Any) -> Any:
    phase, total = np.cumsum(pitch) / RATE, np.zeros(len(pitch))
    for harmonic in range(1, 40):
        loudness = sum(0.5**i / (1 + ((pitch * harmonic - f) / (90 + 60 * i)) ** 2) for i, f in enumerate(resonances))
        total += loudness * np.sin(2 * np.pi * harmonic * phase) / harmonic**0.3
    return total


def read(path: Path) -> Sound:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), "16 kHz, one channel, 16 bits"
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def with_torch(client: redis.Redis, sound: Sound) -> Iterator[float]:
    """Inputs: 512 samples and the rate. One round trip per step."""
    for start in range(0, len(sound) - STEP + 1, STEP):
        replies = client.execute_command(
            *["AI.DAGEXECUTE", "LOAD", 1, "rate", "|>"],
            *["AI.TENSORSET", "x", "FLOAT", 1, STEP, "BLOB", sound[start : start + STEP].tobytes(), "|>"],
            *["AI.MODELEXECUTE", "voice:torch", "INPUTS", 2, "x", "rate", "OUTPUTS", 1, "y", "|>"],
            *["AI.TENSORGET", "y", "VALUES"],
        )
        yield float(replies[-1][0])


def with_onnx(client: redis.Redis, sound: Sound) -> Iterator[float]:
    """Inputs: 64 old samples with 512 new ones, the memory, and the rate. The memory is a key that the DAG loads and persists."""
    client.execute_command("AI.TENSORSET", "memory", "FLOAT", 2, 1, 128, "BLOB", bytes(4 * 2 * 128))
    padded = np.concatenate([np.zeros(OVERLAP, np.float32), sound])
    for start in range(0, len(sound) - STEP + 1, STEP):
        replies = client.execute_command(
            *["AI.DAGEXECUTE", "LOAD", 2, "rate", "memory", "PERSIST", 1, "memory", "|>"],
            *["AI.TENSORSET", "x", "FLOAT", 1, OVERLAP + STEP, "BLOB", padded[start : start + OVERLAP + STEP].tobytes(), "|>"],
            *["AI.MODELEXECUTE", "voice:onnx", "INPUTS", 3, "x", "memory", "rate", "OUTPUTS", 2, "y", "memory", "|>"],
            *["AI.TENSORGET", "y", "VALUES"],
        )
        yield float(replies[-1][0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Find speech in a recording.")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("recording", type=Path, nargs="?")
    options = parser.parse_args()
    client = redis.Redis(port=options.port)
    sound = read(options.recording) if options.recording else hummed()

    for name, backend, file in (("torch", "TORCH", "silero_vad.jit"), ("onnx", "ONNX", "silero_vad.onnx")):
        client.execute_command("AI.MODELSTORE", f"voice:{name}", backend, "CPU", "BLOB", published("silero-vad", file).read_bytes())
    client.execute_command("AI.TENSORSET", "rate", "INT64", 1, "VALUES", RATE)

    torch, onnx = np.array(list(with_torch(client, sound))), np.array(list(with_onnx(client, sound)))
    print("".join("#" if score > 0.5 else "." for score in onnx))
    spoken = np.flatnonzero(onnx > 0.5) * STEP / RATE
    print(f"speech from {spoken[0]:.1f} s to {spoken[-1]:.1f} s" if len(spoken) else "no speech")
    print(f"{len(onnx)} steps; the two backends differ by less than {10 ** np.ceil(np.log10(np.abs(torch - onnx).max())):.0e}")


if __name__ == "__main__":
    main()
