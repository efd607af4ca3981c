"""What torch says about the GPU, without loading torch where nobody has."""

from __future__ import annotations


def describe_cuda() -> str | None:
    """Return the GPUs that torch can use, in words; None without any. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return None
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{names} (CUDA {torch.version.cuda})"
