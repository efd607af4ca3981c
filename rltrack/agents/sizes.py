"""How large the numbers of a training are, iteration by iteration: weights, gradients, activations, ratios, advantages."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SHOWN_ITERATIONS = 5
_GROWN = 1e3
_LOCALS = {"ratio": "ratio", "advantages": "advantage", "target_q_values": "target Q"}
"""Variables of SB3's updates, and what they are called."""


class Sizes:
    """Keeps the largest of each kind for the last iterations.

    Args:
        env_steps: Returns the env steps of the run.

    Attributes:
        rows: One for each of the last iterations: ``env steps``, ``learning rate``, and the largest absolute value of ``weight``,
            ``activation``, ``ratio``, ``advantage`` and ``target Q``; ``gradient norm`` is the L2 norm over all parameters, before
            clipping. What did not occur is absent.
    """

    def __init__(self, env_steps: Callable[[], int]) -> None:
        self._env_steps = env_steps
        self.rows: deque[dict[str, float]] = deque([{}], SHOWN_ITERATIONS)
        self._squares = 0.0
        self._first_weight: float | None = None
        self._last = (0, 0.0, 0.0, 0.0)

    def begin_iteration(self) -> None:
        """What follows belongs to a new iteration."""
        if self.rows[-1]:
            self.rows.append({})

    def tensor(self, what: str, value: Any) -> None:
        """See a tensor; anything else is ignored."""
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            self._keep(what, float(value.detach().abs().max()))

    def locals_of_update(self, variables: Mapping[str, Any]) -> None:
        """See the variables of the function that calls ``backward``."""
        for name, what in _LOCALS.items():
            self.tensor(what, variables.get(name))

    def begin_backward(self) -> None:
        """The gradients that follow are those of one loss."""
        self._squares = 0.0

    def gradient(self, value: torch.Tensor) -> None:
        """See the gradient of one parameter."""
        self._squares += float(value.detach().double().square().sum())

    def end_backward(self) -> None:
        """All gradients of a loss were seen."""
        self._keep("gradient norm", math.sqrt(self._squares))

    def weights(self, optimizer: torch.optim.Optimizer) -> float:
        """See the parameters of an optimizer after its step; return the largest absolute value."""
        values = [one.detach() for group in optimizer.param_groups for one in group["params"] if one.numel()]
        largest = [float(one.abs().max()) for one in values]
        weight = next((one for one in largest if math.isnan(one)), max(largest, default=0.0))
        rate = float(optimizer.param_groups[0]["lr"])
        self._keep("weight", weight)
        self._keep("learning rate", rate)
        if self._first_weight is None:
            self._first_weight = weight
        self._last = (self._env_steps(), weight, math.sqrt(self._squares), rate)
        return weight

    def growth(self) -> str:
        """Say so where the weights grew before: then other numbers follow from that."""
        steps, weight, gradient, rate = self._last
        if self._first_weight is None or weight <= _GROWN * max(min(self._first_weight, 1.0), 1e-3):
            return ""
        return (
            f"the largest weight grew to {weight:.4g} at {steps:,} env steps, with a learning rate of {rate:.4g} and a "
            f"gradient norm of {gradient:.4g}"
        )

    def _keep(self, what: str, value: float) -> None:
        row = self.rows[-1]
        row["env steps"] = self._env_steps()
        row[what] = value if not value <= row.get(what, -math.inf) else row[what]


def forward_line(warnings: Sequence[str]) -> str | None:
    """Return the line outside torch that called the function whose gradient is NaN, from what anomaly detection said."""
    inside = str(Path(torch.__file__).parent)
    found = [
        f"{file}:{line}: {code.strip()}"
        for text in warnings
        for file, line, code in re.findall(r'File "([^"]+)", line (\d+), in .*\n(.*)', text)
        if not file.startswith(inside)
    ]
    return found[-1] if found else None
