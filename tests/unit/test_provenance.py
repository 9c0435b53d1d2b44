"""What a record says of the process that wrote it."""

import numpy as np
import psutil

from rankscope.provenance import peak_memory_bytes


def test_the_peak_remembers_memory_that_was_given_back():
    size = 200_000_000
    before = psutil.Process().memory_info().rss
    block = np.ones(size, dtype=np.uint8)
    del block
    assert peak_memory_bytes() > before + 0.9 * size
