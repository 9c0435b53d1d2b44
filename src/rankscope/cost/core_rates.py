"""How fast one core of this processor is, measured in a process of its own whose libraries have one thread."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time

# Read by numerical libraries when they are loaded. Threads of one product wait for each other on a busy machine, and
# that counts as processor time: two made a core look half as fast there (docs/log.md).
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@functools.cache
def core_rates() -> tuple[float, float]:
    """Operations a second in a matrix product and values a second in a sum, of one core."""
    command = [sys.executable, "-P", __file__]  # without this folder among those that modules are looked for in
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    arithmetic, moved = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    return arithmetic, moved


def _measured() -> tuple[float, float]:
    """The same with the threads that this process has; in processor time, the best of a few."""
    import numpy as np

    matrix = np.ones((768, 768), dtype=np.float32)
    long, out = np.ones(4_000_000, dtype=np.float32), np.empty(4_000_000, dtype=np.float32)
    matrix @ matrix
    products, sums = [], []
    for _ in range(4):
        started = time.process_time()
        for _ in range(3):
            matrix @ matrix
        products.append(time.process_time() - started)
        started = time.process_time()
        np.add(long, 1.0, out=out)
        sums.append(time.process_time() - started)
    return 3 * 2 * 768**3 / max(min(products), 1e-9), 2 * long.size / max(min(sums), 1e-9)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measured()))
