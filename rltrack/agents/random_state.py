"""The process-wide random streams: read them, put them back, keep them untouched."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def capture_random() -> dict[str, Any]:
    """Return the state of Python's, numpy's and (if it is loaded) torch's random streams, as plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": (version, np.array(internal, dtype=np.uint32), gauss),
        "numpy": {"name": name, "keys": keys, "position": position, "has_gauss": has_gauss, "cached": cached},
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        state["torch"] = torch.get_rng_state().numpy()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = [device.numpy() for device in torch.cuda.get_rng_state_all()]
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Put back what `capture_random` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in internal), gauss))
    stream = state["numpy"]
    np.random.set_state((stream["name"], stream["keys"], stream["position"], stream["has_gauss"], stream["cached"]))
    if "torch" in state:
        import torch

        torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([torch.from_numpy(np.array(device)) for device in state["cuda"]])


@contextmanager
def untouched_random_streams() -> Iterator[None]:
    """Leave the process-wide random streams as they were, whatever happens inside."""
    state = capture_random()
    try:
        yield
    finally:
        restore_random(state)
