"""Recognises the parts of a model, and installs what replaces them.

The same functions serve the model and the copies on which they are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rltrack.acceleration import environments as vectorised
from rltrack.acceleration import (
    off_policy_collection,
    on_policy_collection,
    update_a2c,
    update_dqn,
    update_ppo,
    update_sac,
    update_td3,
)
from rltrack.acceleration.actor_critic import ActorCritic
from rltrack.acceleration.continuous import ContinuousNetworks
from rltrack.acceleration.flat import FlatParameters, can_be_flat
from rltrack.acceleration.networks import NotRecognised
from rltrack.acceleration.optimizers import FlatOptimizer, flat_optimizer
from rltrack.acceleration.optimizers import install as install_optimizer
from rltrack.acceleration.patches import Patches, overridden, replaced_on_class
from rltrack.acceleration.prediction import mode_setter, predictor
from rltrack.acceleration.update import train_method

NAMES = ("environments", "networks", "collection", "optimizers", "update")
_ALGORITHMS: dict[type, Callable[[Any], Any]] = {
    PPO: ActorCritic,
    A2C: ActorCritic,
    DQN: update_dqn.QFunctions,
    SAC: ContinuousNetworks,
    TD3: ContinuousNetworks,
    DDPG: ContinuousNetworks,
}


class Installation:
    """The replacements in one model.

    Args:
        model: A model of SB3.
        off: Reasons for parts that must not be replaced.
    """

    def __init__(self, model: Any, off: Mapping[str, str]) -> None:
        self.model = model
        self.patches = Patches()
        self.optimizers: dict[str, FlatOptimizer] = {}
        self.targets: list[FlatParameters] = []
        self.networks: Any = None
        self.reasons: dict[str, str] = dict(off)
        for name in NAMES:
            try:
                if name in off:
                    continue
                getattr(self, f"_install_{name}")()
            except NotRecognised as found:
                self.reasons[name] = str(found)

    def undo(self) -> None:
        """Put everything back."""
        self.patches.undo()
        for flat in self.optimizers.values():
            flat.release()
        for target in self.targets:
            target.release()

    def _install_environments(self) -> None:
        env = vectorised.innermost(self.model.env)
        self.patches.replace(env, "step_wait", vectorised.stepper(env))

    def _install_networks(self) -> None:
        model = self.model
        build = _ALGORITHMS.get(type(model))
        if build is None:
            raise NotRecognised(f"the algorithm is a {type(model).__name__}")
        if model.device.type != "cpu":
            raise NotRecognised(f"the networks are on {model.device}")
        if model.use_sde:
            raise NotRecognised("the policy explores by gSDE")
        own = [*overridden(model), *replaced_on_class(type(model))]
        if own:
            raise NotRecognised(f"the model has its own {', '.join(own)}")
        networks = build(model.policy)
        if networks.is_watched():
            raise NotRecognised("hooks are registered on the policy")
        networks.hold(model, "policy")
        self.networks = networks
        act = networks.actor.act if isinstance(networks, ContinuousNetworks) else networks.act
        predict = predictor(model.policy, act, networks.is_watched)
        self.patches.replace(model.policy, "predict", predict)
        self.patches.replace(model.policy, "set_training_mode", mode_setter(model.policy))

    def _needs_networks(self) -> None:
        if self.networks is None:
            raise NotRecognised(self.reasons["networks"])

    def _install_collection(self) -> None:
        self._needs_networks()
        model = self.model
        if isinstance(model, OnPolicyAlgorithm):
            self.patches.replace_in_model(
                model, "collect_rollouts", on_policy_collection.collector(model, self.networks)
            )
        else:
            collect = off_policy_collection.collector(model, self.networks.is_watched)
            self.patches.replace_in_model(model, "collect_rollouts", collect)

    def _install_optimizers(self) -> None:
        found = {name: flat_optimizer(optimizer) for name, optimizer in optimizers_of(self.model).items()}
        if not found:
            raise NotRecognised("the model has no optimizer of torch")
        for flat in found.values():
            install_optimizer(self.patches, flat)
        self.optimizers = found

    def _install_update(self) -> None:
        self._needs_networks()
        if not self.optimizers:
            raise NotRecognised(self.reasons["optimizers"])
        model, networks, optimizers = self.model, self.networks, self.optimizers
        for owner in (model.policy, getattr(model.policy, "actor", None), getattr(model.policy, "critic", None)):
            if hasattr(owner, "optimizer"):
                networks.hold(owner, "optimizer")
        policy = model.policy
        if type(model) in (PPO, A2C):
            self._require_parameters("policy", policy)
            algorithm = update_ppo if type(model) is PPO else update_a2c
            update = algorithm.updater(model, networks, optimizers["policy"])
        elif type(model) is DQN:
            self._require_parameters("policy", policy.q_net)
            update = update_dqn.updater(model, networks, optimizers["policy"])
        else:
            self._require_parameters("actor", policy.actor)
            self._require_parameters("critic", policy.critic)
            target = self._target(policy.critic_target)
            if type(model) is SAC:
                update = update_sac.updater(model, networks, optimizers, target)
            else:
                update = update_td3.updater(model, networks, optimizers, target, self._target(policy.actor_target))
        self.patches.replace_in_model(model, "train", train_method(model, networks, optimizers, update))

    def _require_parameters(self, name: str, module: Any) -> None:
        held = self.optimizers[name].flat.parameters
        own = list(module.parameters())
        if len(held) != len(own) or any(a is not b for a, b in zip(held, own, strict=True)):
            raise NotRecognised(f"the {name}'s optimizer holds other parameters than its networks")

    def _target(self, module: Any) -> FlatParameters:
        parameters = list(module.parameters())
        if not can_be_flat(parameters):
            raise NotRecognised("the target networks are not float32 tensors on the CPU")
        self.targets.append(FlatParameters(parameters))
        return self.targets[-1]


def optimizers_of(model: Any) -> dict[str, Any]:
    """Return the optimizers that a model of SB3 or sb3-contrib steps, by the name of what they train."""
    if not isinstance(model, OnPolicyAlgorithm | OffPolicyAlgorithm):
        return {}
    policy: Any = model.policy
    found = {
        "policy": getattr(policy, "optimizer", None),
        "actor": getattr(getattr(policy, "actor", None), "optimizer", None),
        "critic": getattr(getattr(policy, "critic", None), "optimizer", None),
        "ent_coef": getattr(model, "ent_coef_optimizer", None),
    }
    return {name: optimizer for name, optimizer in found.items() if optimizer is not None}
