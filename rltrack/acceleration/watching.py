"""Notices that someone watches or exchanges parts of a model after it was accelerated."""

from __future__ import annotations

from typing import Any

from torch.nn.modules import module as torch_module

from rltrack.acceleration.patches import hooks_of


class Watched:
    """Base class of a policy's networks in their fast form.

    Args:
        policy: The policy that they stand for.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self._hooks = hooks_of(policy.modules())
        self._parameters = list(policy.parameters())
        self._held: list[tuple[Any, str, Any]] = []

    def hold(self, owner: Any, name: str) -> None:
        """Expect that an object keeps what it has under a name now."""
        self._held.append((owner, name, getattr(owner, name)))

    def is_watched(self) -> bool:
        """Return whether hooks were registered, or policy or optimizer exchanged: then SB3's own code must run."""
        if any(self._hooks) or torch_module._has_any_global_hook():  # type: ignore[no-untyped-call]
            return True
        return any(getattr(owner, name) is not own for owner, name, own in self._held)

    def is_watched_in_updates(self) -> bool:
        """Return whether hooks also wait for gradients of the parameters."""
        if self.is_watched():
            return True
        return any(own._backward_hooks or own._post_accumulate_grad_hooks for own in self._parameters)
