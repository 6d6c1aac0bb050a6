"""The table of backends. One row per backend: its name on the wire and where its class lives.

The class is looked up by name so that importing this package imports no inference library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Backend

#: wire name -> (module below this package, class)
BACKENDS: dict[str, tuple[str, str]] = {
    "TF": ("tensorflow", "TensorFlowBackend"),
    "TFLITE": ("tflite", "TfliteBackend"),
    "TORCH": ("torch", "TorchBackend"),
    "ONNX": ("onnxruntime", "OnnxBackend"),
}


def backend_class(name: str) -> type[Backend]:
    """The class behind a wire name. Raises KeyError for a name that is not in the table."""
    module, cls = BACKENDS[name]
    found: type[Backend] = getattr(import_module(f".{module}", __name__), cls)
    return found
