"""DUMP payloads written by hand, from the published layouts: an encoder that shares nothing with the module's.

A payload is the type's 64-bit id with the encoding version in its last byte, the fields, an end mark, the RDB version and a CRC-64.
Numbers and strings carry an opcode before them.
"""

from __future__ import annotations

import struct

import numpy as np

IDS = {"AI_TENSOR": 0x8FD310D48E4400, "AI__MODEL": 0x8FFF30E0C42C00, "AI_SCRIPT": 0x8FD209120F4C00}
BACKENDS = {"TF": 0, "TFLITE": 1, "TORCH": 2, "ONNX": 3}

#: name -> (code, bits, numpy's dtype; STRING has none)
DTYPES = {
    "FLOAT": (2, 32, "<f4"),
    "DOUBLE": (2, 64, "<f8"),
    "INT8": (0, 8, "<i1"),
    "INT16": (0, 16, "<i2"),
    "INT32": (0, 32, "<i4"),
    "INT64": (0, 64, "<i8"),
    "UINT8": (1, 8, "<u1"),
    "UINT16": (1, 16, "<u2"),
    "BOOL": (6, 8, "?"),
    "STRING": (7, 8, ""),
}


# ---- the envelope ------------------------------------------------------------------------------------------------------------------


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()


def seal(body: bytes) -> bytes:
    """Adds the checksum, without which RESTORE looks at nothing."""
    crc = 0
    for byte in body:
        crc = _TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    return body + struct.pack("<Q", crc)


def length(n: int) -> bytes:
    if n < 64:
        return bytes([n])
    if n < 16384:
        return bytes([0x40 | n >> 8, n & 255])
    return b"\x80" + struct.pack(">I", n) if n < 2**32 else b"\x81" + struct.pack(">Q", n)


def number(n: int) -> bytes:
    return b"\x02" + length(n)


def string(s: bytes) -> bytes:
    return b"\x05" + length(len(s)) + s


def text(s: str) -> bytes:
    """A string with its final NUL, as most texts of the format have."""
    return string(s.encode() + b"\0")


def payload(type_name: str, encver: int, *fields: bytes) -> bytes:
    return seal(b"\x07\x81" + struct.pack(">Q", IDS[type_name] | encver) + b"".join(fields) + b"\x00\x09\x00")


def fields_of(dump: bytes) -> bytes:
    """What is between the id and the end mark of a payload, whatever version of Redis dumped it."""
    return dump[10:-11]


def file_of(values: dict[str, bytes]) -> bytes:
    """A whole dump with these payloads as its keys. Its checksum is 0, which is not checked."""
    keys = [b"\x07" + length(len(key)) + key.encode() + value[1:-10] for key, value in values.items()]
    return b"REDIS0009\xfe\x00" + b"".join(keys) + b"\xff" + bytes(8)


# ---- the three types ---------------------------------------------------------------------------------------------------------------


def offsets(data: bytes) -> list[int]:
    ends = [i + 1 for i, byte in enumerate(data) if byte == 0]
    return [0, *ends[:-1]] if ends else []


def tensor(dtype: str, dims: list[int], data: bytes, encver: int = 4) -> bytes:
    code, bits, _ = DTYPES[dtype]
    shape = [number(len(dims)), *map(number, dims)]
    if encver == 4:
        tail = [number(at) for at in offsets(data)] if dtype == "STRING" else []
        return payload("AI_TENSOR", 4, number(code), number(bits), *shape, string(data), *tail)
    strides = [number(int(np.prod(dims[i + 1 :]))) for i in range(len(dims))]
    head = [number(1), number(2**64 - 1), number(bits), number(code), number(1)]
    return payload("AI_TENSOR", encver, *head, *shape, *strides, number(0), string(data))


def chunks(blob: bytes, size: int) -> list[bytes]:
    """As every writer cuts them: the last one is empty when `size` divides the length."""
    return [blob[i * size : (i + 1) * size] for i in range(len(blob) // size + 1)]


def model(
    backend: str,
    blob: bytes,
    encver: int = 4,
    *,
    device: str = "CPU",
    tag: str = "",
    batching: tuple[int, int, int] = (0, 0, 0),
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
    cut: list[bytes] | None = None,
) -> bytes:
    fields = [number(BACKENDS[backend]), text(device), text(tag) if encver == 0 else string(tag.encode())]
    fields += map(number, batching if encver >= 2 else batching[:2])
    for names in (inputs, outputs):
        fields += [number(len(names)), *map(text, names)]
    if encver == 0:
        return payload("AI__MODEL", 0, *fields, string(blob))
    cut = chunks(blob, 511 * 2**20) if cut is None else cut
    return payload("AI__MODEL", encver, *fields, number(len(blob)), number(len(cut)), *map(string, cut))


def script(source: str, encver: int = 4, *, device: str = "CPU", tag: str = "", entry_points: tuple[str, ...] = ()) -> bytes:
    fields = [text(device), text(tag) if encver == 0 else string(tag.encode()), text(source)]
    if encver >= 3:
        fields += [number(len(entry_points)), *map(text, entry_points)]
    return payload("AI_SCRIPT", encver, *fields)
