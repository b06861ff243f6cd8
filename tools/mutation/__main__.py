"""python -m tools.mutation: see `tools.mutation.command`."""

from __future__ import annotations

import sys

from tools.mutation.command import main

sys.exit(main())
