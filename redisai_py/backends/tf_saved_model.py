"""Zipped SavedModels for the TF backend: what `tf.saved_model.save()` or Keras' `export()` wrote, as one blob. 1.2.7 has no such format.

A SavedModel keeps its weights in files and reads them with operators that a stored graph may not contain (tf_ops.py). TensorFlow's own
loader trusts the bundle, so it is not used:

1. Only the graph below the outputs, the restoring operator and the initialiser is taken, with the functions it calls. Saving, and whatever
   else lies in the bundle, is left behind.
2. Every file name in it is *replaced* by the path of the unpacked bundle (BUNDLED): whatever the graph said, `RestoreV2` reads the
   checkpoint of this bundle and nothing else. A vocabulary is replaced where the bundle has a single asset; with more it is not
   decidable which one was meant, and the operator is refused like every other that reads files.
3. What is left must pass the same check as a plain graph.
4. The weights become constants, which lets TensorFlow fold and pre-pack them (a small CNN runs in 28 us instead of 36). A graph with an
   initialiser has tables, which cannot be constants: it runs in the session that filled them.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BackendError

#: largest bundle that is unpacked, bytes; a zip of a few kilobytes can claim to hold terabytes
UNPACKED_LIMIT = 8 << 30
SERVE = "serve"
DEFAULT_SIGNATURE = "serving_default"
INITIALISER = "__saved_model_init_op"

#: operators that read the bundle's own files -> which of their inputs is the file name
BUNDLED = {"RestoreV2": 0, "InitializeTableFromTextFileV2": 1}


@dataclass(frozen=True)
class Bundle:
    """The part of a SavedModel that serving needs. Tensor names are `operation:index`."""

    meta: Any  # MetaGraphDef
    inputs: Mapping[str, str]  # name in the signature -> tensor
    outputs: Mapping[str, str]
    initialiser: str | None  # operation that fills tables
    asset: str | None  # path below the bundle of its only asset


def is_saved_model(blob: bytes) -> bool:
    """True for a zip archive with a `saved_model.pb`, at its top or in one folder."""
    return root_of(blob) is not None


def root_of(blob: bytes) -> PurePosixPath | None:
    if blob[:4] != b"PK\x03\x04":
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            found = [PurePosixPath(name) for name in archive.namelist() if PurePosixPath(name).name == "saved_model.pb"]
    except zipfile.BadZipFile:
        return None
    return found[0].parent if len(found) == 1 else None


@contextmanager
def unpacked(blob: bytes) -> Iterator[Path]:
    """The folder of `saved_model.pb`, for as long as the block runs. Raises BackendError for a broken or oversized archive."""
    root = root_of(blob)
    assert root is not None
    try:
        directory = tempfile.TemporaryDirectory(prefix="redisai-")
    except OSError as error:
        raise BackendError(f"ERR a SavedModel has to be unpacked into files: {error}") from None
    with directory as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(blob)) as archive:
                if sum(member.file_size for member in archive.infolist()) > UNPACKED_LIMIT:
                    raise BackendError(f"ERR the SavedModel unpacks to more than {UNPACKED_LIMIT} bytes")
                archive.extractall(folder)  # zipfile itself keeps absolute and dotted names inside the folder
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
            raise BackendError(f"ERR cannot unpack the SavedModel: {error}") from None
        yield Path(folder) / root


def read(message: Any, folder: Path) -> Bundle:
    """Reads `saved_model.pb`. `message` is the SavedModel protobuf class. Raises BackendError."""
    saved = message()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception:  # protobuf's DecodeError has had several homes
        raise BackendError("Invalid SavedModel: saved_model.pb cannot be parsed") from None
    meta = next((one for one in saved.meta_graphs if SERVE in one.meta_info_def.tags), None)
    if meta is None:
        raise BackendError(f"Invalid SavedModel: it has no graph tagged {SERVE}")
    signature = default_signature(meta.signature_def)
    assets = [asset.filename for asset in meta.asset_file_def]
    if any(PurePosixPath(name).name != name for name in assets):
        raise BackendError("Invalid SavedModel: an asset lies outside its folder")
    return Bundle(
        meta,
        {name: tensor.name for name, tensor in sorted(signature.inputs.items())},
        {name: tensor.name for name, tensor in sorted(signature.outputs.items())},
        initialiser_of(meta),
        f"assets/{assets[0]}" if len(assets) == 1 else None,
    )


def default_signature(signatures: Mapping[str, Any]) -> Any:
    if DEFAULT_SIGNATURE in signatures:
        return signatures[DEFAULT_SIGNATURE]
    others = [signature for name, signature in signatures.items() if name != INITIALISER]
    if len(others) != 1:
        raise BackendError(f"Invalid SavedModel: it has no signature {DEFAULT_SIGNATURE}")
    return others[0]


def initialiser_of(meta: Any) -> str | None:
    """TF 2 names it in a signature, TF 1 in a collection. An operation without anything to wait for has nothing to initialise."""
    names = [tensor.name for tensor in meta.signature_def[INITIALISER].outputs.values()] if INITIALISER in meta.signature_def else []
    for key in ("saved_model_main_op", "legacy_init_op"):
        if key in meta.collection_def:
            names.extend(meta.collection_def[key].node_list.value)
    nodes = {node.name: node for node in meta.graph_def.node}
    wanted = [operation_of(name) for name in names]
    return next((name for name in wanted if name in nodes and nodes[name].input), None)


def operation_of(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def confined(bundle: Bundle, folder: Path, operations: Iterable[str]) -> tuple[Any, frozenset[str]]:
    """The graph below the signature, the given operations, the restoring one and the initialiser, with the bundle's paths written into it.

    Returns the GraphDef and the names of the operators that may read files, because their file name was replaced.
    """
    roots = {operation_of(tensor) for tensor in (*bundle.inputs.values(), *bundle.outputs.values())}
    roots |= {*operations, operation_of(bundle.meta.saver_def.restore_op_name), bundle.initialiser or ""}
    graph = pruned(bundle.meta.graph_def, roots)
    paths = {"RestoreV2": str(folder / "variables" / "variables")}
    if bundle.asset:
        paths["InitializeTableFromTextFileV2"] = str(folder / bundle.asset)
    point_at(graph.node, paths, "{}")
    for function in graph.library.function:
        point_at(function.node_def, paths, "{}:output:0")
    return graph, frozenset(paths)


def pruned(graph: Any, roots: Iterable[str]) -> Any:
    """A copy of the GraphDef with only what the roots need: nodes, and library functions they call at any depth.

    Reads of variables that are needed anyway stay: making constants of the variables goes through them.
    """
    nodes = {node.name: node for node in graph.node}
    kept = closure(roots, lambda name: [operation_of(one) for one in nodes[name].input] if name in nodes else [])
    kept |= {node.name for node in graph.node if node.op == "ReadVariableOp" and kept.issuperset(map(operation_of, node.input))}
    functions = {function.signature.name: function for function in graph.library.function}
    called = {name for node in kept if node in nodes for name in functions_of(nodes[node]) if name in functions}
    reached = closure(called, lambda name: [one for node in functions[name].node_def for one in functions_of(node) if one in functions])
    result = type(graph)(versions=graph.versions)
    result.node.extend(node for node in graph.node if node.name in kept)
    result.library.function.extend(function for function in graph.library.function if function.signature.name in reached)
    return result


def closure(roots: Iterable[str], next_of: Callable[[str], Iterable[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(next_of(name))
    return seen


def functions_of(node: Any) -> Iterator[str]:
    """The functions a node may call: its operator can be one, and so can its attributes."""
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (one.name for one in value.list.func)


def point_at(nodes: Any, paths: Mapping[str, str], reference: str) -> None:
    """Gives the file-reading operators among the nodes a constant for a file name. `reference` is how an input spells a node's output."""
    constants = {}
    for node in nodes:
        if node.op in paths and len(node.input) > BUNDLED[node.op]:
            constants[node.op] = f"redisai_path_of_{node.op}"
            node.input[BUNDLED[node.op]] = reference.format(constants[node.op])
    for operator, name in constants.items():
        node = nodes.add(name=name, op="Const")
        node.attr["dtype"].type = 7  # DT_STRING
        node.attr["value"].tensor.dtype = 7
        node.attr["value"].tensor.tensor_shape.SetInParent()
        node.attr["value"].tensor.string_val.append(paths[operator].encode())


def fill(session: Any, bundle: Bundle, folder: Path) -> None:
    """Restores the variables and runs the initialiser. `session` holds the graph of confined()."""
    saver = bundle.meta.saver_def
    if saver.restore_op_name and (folder / "variables" / "variables.index").exists():
        session.run(operation_of(saver.restore_op_name), {saver.filename_tensor_name: str(folder / "variables" / "variables")})
    if bundle.initialiser:
        assets = {asset.tensor_info.name: str(folder / "assets" / asset.filename) for asset in bundle.meta.asset_file_def}
        session.run(bundle.initialiser, assets)


def frozen(tf1: Any, session: Any, fetches: Sequence[str]) -> Any | None:
    """The GraphDef below the fetches with the session's variables as constants; None for one that TensorFlow cannot convert."""
    roots = [operation_of(name) for name in fetches]
    try:
        graph = tf1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), roots)
    except Exception:  # the converter stops at operators it does not know, with whatever exception comes
        return None
    return pruned(graph, roots)
