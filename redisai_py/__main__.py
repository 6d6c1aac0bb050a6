"""`python -m redisai_py` is the `redisai` command, for environments whose scripts are not on PATH."""

import sys

from .cli import main

sys.exit(main())
