"""What torch says about the GPU, without loading torch where nobody has."""

from __future__ import annotations

import sys


def allocator_memory_mb() -> float | None:
    """Return the memory that torch's CUDA allocator has reserved, in MB (1e6 bytes); None without CUDA in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return float(sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))) / 1e6


def describe_cuda() -> str | None:
    """Return the GPUs that torch can use, in words; None without any. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return None
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{names} (CUDA {torch.version.cuda})"
