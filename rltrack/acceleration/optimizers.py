"""Adam, AdamW, RMSprop and SB3's RMSpropTFLike over one flat tensor instead of one parameter after the other.

The optimizer object stays SB3's. Its state holds views of the flat moments, so that `state_dict`, `load_state_dict` and copies in
place work; whatever is replaced is found at the next step and taken over. What the flat formula does not cover (a parameter
without gradient, a hook, a learning rate that is a tensor) goes to the optimizer's own `step`, on the same views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch.optim import optimizer as torch_optimizer

from rltrack.acceleration.flat import FlatParameters, can_be_flat
from rltrack.acceleration.networks import NotRecognised
from rltrack.acceleration.patches import Patches, overridden


class FlatOptimizer:
    """Base class: keeps parameters, gradients and state as views of flat tensors.

    Args:
        optimizer: An optimizer of one group of parameters.
    """

    counts_in_tensors = True
    """Whether the state's ``step`` is a tensor."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.flat = FlatParameters(optimizer.param_groups[0]["params"])
        layout = self.flat.layout
        self.gradient = layout.tensor()
        self.gradients = layout.views(self.gradient)
        self.steps = torch.zeros(len(layout.sizes))
        self._slots: dict[str, torch.Tensor] = {}
        self._entries: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self._state: Any = None

    # what a subclass says

    def slots(self, group: dict[str, Any]) -> dict[str, float]:
        """Return names and first values of what the state holds for each parameter."""
        raise NotImplementedError

    def update(self, group: dict[str, Any], lr: float) -> None:
        """Change the parameters by the gradient."""
        raise NotImplementedError

    # what training calls

    def apply(self, gradients: Sequence[torch.Tensor], max_norm: float | None = None) -> None:
        """Take one step along the gradients, one for each parameter, clipped to a norm as SB3 clips them."""
        parameters = self.flat.parameters
        if parameters[0].grad is not self.gradients[0]:
            for parameter, view in zip(parameters, self.gradients, strict=True):
                parameter.grad = view
        with torch.no_grad():
            torch._foreach_copy_(self.gradients, list(gradients))
            if max_norm is not None:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
                self.gradient.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
            if self._is_ready():
                group = self.optimizer.param_groups[0]
                self.update(group, group["lr"])
                return
        type(self.optimizer).step(self.optimizer)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Replace the optimizer's own `step`."""
        gradients = [parameter.grad for parameter in self.flat.parameters if parameter.grad is not None]
        if closure is not None or len(gradients) < len(self.gradients) or not self._is_ready():
            self._state = (
                None  # parameters without a gradient fall behind in their count of steps: it is compared again
            )
            return type(self.optimizer).step(self.optimizer, closure)
        torch._foreach_copy_(self.gradients, gradients)
        group = self.optimizer.param_groups[0]
        self.update(group, group["lr"])
        return None

    def _is_ready(self) -> bool:
        """Bind what is not bound, and return whether the flat formula applies now."""
        optimizer = self.optimizer
        if (
            optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or type(optimizer.param_groups[0]["lr"]) not in (float, int)
        ):
            return False
        self.flat.bind()
        if self._state is optimizer.state and all(entry.get(name) is view for entry, name, view in self._entries):
            return True
        return self._bind_state()

    def _bind_state(self) -> bool:
        """Make the state views of flat tensors: of zeros before the first step, of what it holds later."""
        state = self.optimizer.state
        slots = self.slots(self.optimizer.param_groups[0])
        owned = [state.get(parameter) or {} for parameter in self.flat.parameters]
        names = {"step", *slots}
        is_new = not any(owned)
        if not is_new and any(set(entry) != names for entry in owned):
            return False
        counts = {0.0} if is_new else {float(entry["step"]) for entry in owned}
        if len(counts) != 1:
            return False
        layout = self.flat.layout
        self.steps = torch.full((len(owned),), counts.pop())
        self._slots = {name: layout.tensor(value) for name, value in slots.items()}
        self._entries = []
        views = {name: layout.views(flat) for name, flat in self._slots.items()}
        for index, parameter in enumerate(self.flat.parameters):
            entry = state[parameter]
            if self.counts_in_tensors:
                views["step"] = [*views.get("step", []), self.steps[index]]
            else:
                entry["step"] = int(self.steps[index])
            for name, own in views.items():
                if name in slots and not is_new:
                    own[index].copy_(entry[name])
            for name in ("step", *slots):
                if name in views:
                    entry[name] = views[name][index]
                    self._entries.append((entry, name, views[name][index]))
        self._state = state
        return True

    def count(self) -> float:
        """Count this step, and return how many there were with it."""
        if self.counts_in_tensors:
            self.steps += 1
            return float(self.steps[0])
        for entry, _, _ in self._entries[:: len(self._slots)]:
            entry["step"] += 1
        return 0.0

    def release(self) -> None:
        """Give parameters and state memory of their own again."""
        self.flat.release()
        for entry, name, view in self._entries:
            if entry.get(name) is view:
                entry[name] = view.clone()
        self._entries, self._state = [], None


class FlatAdam(FlatOptimizer):
    """Adam, and AdamW where the weight decay is decoupled."""

    def slots(self, group: dict[str, Any]) -> dict[str, float]:
        """Return names and first values of the moments."""
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def update(self, group: dict[str, Any], lr: float) -> None:
        """Follow `torch.optim.adam._single_tensor_adam`."""
        step = self.count()
        beta1, beta2 = group["betas"]
        values, gradient, decay = self.flat.values, self.gradient, group["weight_decay"]
        if decay != 0:
            if group["decoupled_weight_decay"]:
                values.mul_(1 - lr * decay)
            else:
                gradient = gradient.add(values, alpha=decay)
        average, square = self._slots["exp_avg"], self._slots["exp_avg_sq"]
        average.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        step_size = lr / (1 - beta1**step)
        denominator = (square.sqrt() / ((1 - beta2**step) ** 0.5)).add_(group["eps"])
        values.addcdiv_(average, denominator, value=-step_size)


class FlatRMSprop(FlatOptimizer):
    """`torch.optim.RMSprop`, as A2C uses it."""

    first_square = 0.0

    def slots(self, group: dict[str, Any]) -> dict[str, float]:
        """Return names and first values of the averages."""
        found = {"square_avg": self.first_square}
        if group["momentum"] > 0:
            found["momentum_buffer"] = 0.0
        if group["centered"]:
            found["grad_avg"] = 0.0
        return found

    def update(self, group: dict[str, Any], lr: float) -> None:
        """Follow `torch.optim.rmsprop._single_tensor_rmsprop`."""
        self.count()
        values, gradient, alpha = self.flat.values, self.gradient, group["alpha"]
        if group["weight_decay"] != 0:
            gradient = gradient.add(values, alpha=group["weight_decay"])
        square = self._slots["square_avg"]
        square.mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        root = self._root(group, square, gradient)
        if group["momentum"] > 0:
            momentum = self._slots["momentum_buffer"]
            momentum.mul_(group["momentum"]).addcdiv_(gradient, root)
            values.add_(momentum, alpha=-lr)
        else:
            values.addcdiv_(gradient, root, value=-lr)

    def _root(self, group: dict[str, Any], square: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if group["centered"]:
            average = self._slots["grad_avg"]
            average.lerp_(gradient, 1 - group["alpha"])
            return square.addcmul(average, average, value=-1).sqrt_().add_(group["eps"])
        return square.sqrt().add_(group["eps"])


class FlatRMSpropTFLike(FlatRMSprop):
    """SB3's RMSpropTFLike: the average begins at one, and epsilon lies within the root."""

    counts_in_tensors = False
    first_square = 1.0

    def _root(self, group: dict[str, Any], square: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if group["centered"]:
            average, alpha = self._slots["grad_avg"], group["alpha"]
            average.mul_(alpha).add_(gradient, alpha=1 - alpha)
            return square.addcmul(average, average, value=-1).add_(group["eps"]).sqrt_()
        return square.add(group["eps"]).sqrt_()


_KINDS: dict[type, type[FlatOptimizer]] = {
    torch.optim.Adam: FlatAdam,
    torch.optim.AdamW: FlatAdam,
    torch.optim.RMSprop: FlatRMSprop,
    RMSpropTFLike: FlatRMSpropTFLike,
}
_OTHER_FORMULAS = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")


def flat_optimizer(optimizer: Any) -> FlatOptimizer:
    """Return the flat form of an optimizer, not yet in use.

    Raises:
        NotRecognised: If there is none.
    """
    kind = _KINDS.get(type(optimizer))
    if kind is None:
        raise NotRecognised(f"the optimizer is a {type(optimizer).__name__}")
    if len(optimizer.param_groups) != 1:
        raise NotRecognised("the optimizer has several groups of parameters")
    group = optimizer.param_groups[0]
    other = [name for name in _OTHER_FORMULAS if group.get(name)]
    if other or overridden(optimizer):
        raise NotRecognised(f"the optimizer is used with {', '.join(other or overridden(optimizer))}")
    if not can_be_flat(group["params"]) or not all(parameter.requires_grad for parameter in group["params"]):
        raise NotRecognised("the parameters are not all trained float32 tensors on the CPU")
    return kind(optimizer)


def install(patches: Patches, flat: FlatOptimizer) -> None:
    """Let the optimizer's `step` be the flat one."""
    patches.replace(flat.optimizer, "step", flat.step)
