"""Examines a TorchScript archive before torch reads it, because torch trusts what an archive says about itself.

An archive is a zip of pickles, tensor data and source code. Found with torch 2.13 and hand-made archives: a storage that claims more
elements than its record holds reads whatever lies behind it in memory; a pickle that memorises under a large number allocates that many
slots; values or code nested very deeply overflow the C stack; damaged debug records end the process while an error message is being made;
checksums are not compared, so damaged weights load. So `check()` reads everything except the weights' values first, and `without_debug()`
takes the debug records out.

1. Records are read with torch's own zip reader: another reader might see other files under the same names.
2. Pickles are read by Python's unpickler with every class replaced by an inert one. It is the slow one, written in Python, on purpose:
   the fast one allocates for large memo numbers too. About a microsecond per value; weights are not values.
3. What cannot be read here is refused, also where torch might manage.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import BackendError
from . import torch_ops

#: An archive may unpack to this multiple of its size plus this many bytes.
_PACK_RATIO, _PACK_FREE = 20, 64 << 20
MAX_NESTING = 1000
MAX_FUNCTIONS = 10_000  # each may be compiled in the middle of its caller

#: bytes per element of a storage class
_ITEM = {
    **dict.fromkeys(("Bool", "Byte", "Char", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4", "Untyped"), 1),
    **dict.fromkeys(("Float8_e5m2", "Float8_e4m3fn", "Float8_e5m2fnuz", "Float8_e4m3fnuz", "Float8_e8m0fnu"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short", "UInt16"), 2),
    **dict.fromkeys(("Float", "Int", "UInt32", "QInt32", "ComplexHalf"), 4),
    **dict.fromkeys(("Double", "Long", "UInt64", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}


def check(reader: Any, blob: bytes, allow_file_ops: bool = False) -> None:
    """Refuses an archive that torch should not see. `reader` is torch's PyTorchFileReader over `blob`. Raises BackendError."""
    records: list[str] = reader.get_all_records()
    if reader.has_record("model.json"):
        raise BackendError("ERR the archive was written by a PyTorch older than 1.2; load it there and save it with a newer one")
    if sum(map(reader.get_record_size, records)) > _PACK_RATIO * len(blob) + _PACK_FREE:
        raise BackendError("ERR the archive unpacks to more than a model of its size can hold")
    _check_sums(blob)
    functions = 0
    for record in records:
        if record.lower().endswith(".py"):  # torch finds records whatever the case
            source = reader.get_record(record).decode(errors="replace")
            torch_ops.check_source(source, allow_file_ops=allow_file_ops)
            functions += source.count("def ")
    if functions > MAX_FUNCTIONS:
        raise BackendError(f"ERR the model has more than {MAX_FUNCTIONS} functions")
    for folder in ("constants", "data"):
        _check_pickle(folder, reader)


def without_debug(blob: bytes) -> bytes:
    """The archive with its debug records under names that torch does not look for.

    They map compiled code back to the author's source in error messages. Without them messages quote the code in the archive only.
    """
    return blob.replace(b".debug_pkl", b".debug_off")


def _check_sums(blob: bytes) -> None:
    try:
        damaged = zipfile.ZipFile(io.BytesIO(blob)).testzip()
    except Exception as error:  # zipfile lets through what its codecs raise
        raise BackendError(f"ERR the archive is damaged: {error}") from error
    if damaged is not None:
        raise BackendError(f"ERR the archive is damaged: {damaged} does not match its checksum")


def _check_pickle(folder: str, reader: Any) -> None:
    """Checks the values in `<folder>.pkl`, whose storages are the records in that folder."""

    def size(key: str) -> int:
        return int(reader.get_record_size(f"{folder}/{key}")) if reader.has_record(f"{folder}/{key}") else 0

    try:
        value = _Reader(reader.get_record(f"{folder}.pkl"), size).load()
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"ERR the archive is damaged: {folder}.pkl cannot be read: {error}") from error
    if _nests_too_deeply(value):
        raise BackendError(f"ERR the archive's values nest deeper than {MAX_NESTING} levels")


class _Inert:
    """Stands for any object of a pickle: keeps what it is made of, does nothing."""

    parts: list[Any]

    def __new__(cls, *arguments: Any) -> _Inert:
        made = super().__new__(cls)
        made.parts = [*arguments]
        return made

    def __setstate__(self, state: Any) -> None:
        self.parts.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.parts += (key, value)

    def append(self, value: Any) -> None:
        self.parts.append(value)


class _Reader(pickle._Unpickler):
    """Reads a pickle into inert objects. `size(key)` is the number of bytes in the record behind a storage."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]  # these four are set by load()
    append: Callable[[Any], None]
    stack: list[Any]
    memo: dict[int, Any]

    def __init__(self, data: bytes, size: Callable[[str], int]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self._length = len(data)
        self._size = size

    def find_class(self, module: str, name: str) -> type[_Inert]:
        return type(name, (_Inert,), {"__module__": module})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes are not used by torch")

    def persistent_load(self, identity: Any) -> _Inert:
        """A storage: ("storage", class, key, device, number of elements)."""
        _, kind, key, _, count = identity
        item = _ITEM.get(kind.__name__.removesuffix("Storage"))
        if item is None:
            raise BackendError(f"ERR the archive has a storage of an unknown type, {kind.__name__}")
        if not 0 <= count * item <= self._size(key):
            raise BackendError(f"ERR the archive is damaged: storage {key} is shorter than {count} elements")
        return _Inert(key)

    def _binunicode(self) -> None:
        """TorchScript strings are any bytes, not always UTF-8."""
        length = int.from_bytes(self.read(4), "little")
        self.append(self.read(length).decode("latin-1"))

    def _long_binput(self) -> None:
        slot = int.from_bytes(self.read(4), "little")
        if slot > self._length:
            raise pickle.UnpicklingError("a memo number beyond the number of values")
        self.memo[slot] = self.stack[-1]

    dispatch[pickle.BINUNICODE[0]] = _binunicode
    dispatch[pickle.LONG_BINPUT[0]] = _long_binput


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value.parts if isinstance(value, _Inert) else value if isinstance(value, (tuple, list)) else ()


def _nests_too_deeply(value: Any) -> bool:
    """Whether containers nest beyond MAX_NESTING. Parts may be shared, and a part may contain itself: each is entered once."""
    heights: dict[int, int] = {}  # levels below and including a container that has been left; 0 while it is being read
    path = [(value, iter(_parts(value)))]
    while path:
        container, parts = path[-1]
        for part in parts:
            below = heights.get(id(part))
            if len(path) + (below or 0) > MAX_NESTING:
                return True
            if below is None and _parts(part):
                heights[id(part)] = 0
                path.append((part, iter(_parts(part))))
                break
        else:
            path.pop()
            heights[id(container)] = 1 + max((heights.get(id(part), 0) for part in _parts(container)), default=0)
    return False
