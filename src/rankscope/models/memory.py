"""Whether an error means that memory ran out; every device says it in its own words."""

from __future__ import annotations

import torch

# What torch's allocators for processors and for Apple's devices say in a plain RuntimeError.
_SAYINGS = ("out of memory", "not enough memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, so that less at a time may do."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in _SAYINGS)


def free_memory(device: torch.device) -> None:
    """Give back what the device's allocator holds for later use: pieces of the wrong size are no use then."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
