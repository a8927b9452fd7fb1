"""``just bench``: every speed that the project claims, as a ratio, in one run on one core.

    python -m tests.bench [--out docs/benchmarks.md] [--only render shards load job] [--quick]
"""

from __future__ import annotations

import argparse
import os

# Before numpy and torch read them: one core, one thread, for both sides of every ratio.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
