"""TorchScript scripts: compiled from source, run with Redis within reach.

Read in this order:

1. `session.py` - what the rest of the server sees: `ScriptSession` opens a script and runs its functions.
2. `source.py` - what is refused before the C++ parser sees a byte: it recurses, and a stack overflow ends the server.
3. `namespaces.py` - what the free names of a script mean (`torch`, `math`, `redis`, `redisAI`), and so all that it can reach.
4. `prelude.py` and `operators.py` - `redis.execute` and its siblings: the half written in TorchScript and the half written in Python.
5. `compile.py` - source to `Program`: compilation, the check of every operator, what a run must know about each function; `guards.py`
   makes safe the operators that would end the process.
6. `replies.py`, `tensors.py` - values on their way in and out.

Importing this package imports no torch; opening a session does.
"""

from .replies import ReplyError
from .session import ScriptHost, ScriptSession

__all__ = ["ReplyError", "ScriptHost", "ScriptSession"]
