"""The Python half of the module: what runs inside the server, and the `redisai` command beside it.

Importing this package imports nothing else. `redisai_py.engine` is where the half inside the server begins, `redisai_py.cli` the command,
and `redisai_py.install` says where the installation's files are.
"""

__version__ = "0.1.0"


def module_path() -> str:
    """The path of redisai.so, for `loadmodule`. Raises FileNotFoundError, saying how to build it, when it is not there."""
    from .install import module_path as find

    return str(find())
