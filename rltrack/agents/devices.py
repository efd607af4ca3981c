"""Which device an agent learns on, and what torch says about the GPU, without loading torch when it is imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

WORK = 2e8
"""Parameters times observations of one gradient step from which on a GPU is chosen. Measured on an H200 against one
thread of its machine's CPU: equally fast at 4e7, 1.5 to 2.3 times as fast at 1.4e8 (docs/train.md); twice that is asked for,
since the CPU's part can be accelerated. `rltrack benchmark device` measures the machine at hand."""


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on ``count`` threads; several in a small network are slower, on a busy machine by far."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_cuda() -> str | None:
    """Return the GPUs that torch can use, in words; None without any. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return None
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{names} (CUDA {torch.version.cuda})"


def choose_device(model: Any) -> tuple[str, str]:
    """Choose where a model learns, by its network.

    A small network spends its time on starting kernels, not in them, and acts for every env step besides: most of
    reinforcement learning is faster on the CPU. Convolutions and large products are what a GPU is for.

    Args:
        model: SB3's model, built on the CPU.

    Returns:
        ``cpu`` or ``cuda``, and the reason.
    """
    import torch

    policy = getattr(model, "policy", None)
    if not torch.cuda.is_available():
        return "cpu", f"torch {torch.__version__} sees no GPU"
    if not isinstance(policy, torch.nn.Module):
        return "cpu", "the policy is not one of torch's"
    if any(isinstance(part, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d) for part in policy.modules()):
        return "cuda", "the network has convolutions"
    size = sum(parameter.numel() for parameter in policy.parameters())
    batch = int(getattr(model, "batch_size", 0) or getattr(model, "n_steps", 1) * getattr(model, "n_envs", 1))
    work = f"{size:,} parameters in batches of {batch:,}"
    if size * batch >= WORK:
        return "cuda", f"{work}: large enough for a GPU"
    return "cpu", f"{work}: too small for a GPU to be faster"
