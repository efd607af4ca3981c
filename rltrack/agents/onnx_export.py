"""A policy as an ONNX file: raw observations in, deterministic actions out, normalisation inside."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecNormalize

from rltrack.agents.policy_check import sample
from rltrack.agents.policy_description import describe_policy
from rltrack.agents.policy_spaces import space_of
from rltrack.errors import MissingExtra, PolicyNotStorable

_TOLERANCE = 1e-4


class _Acting(torch.nn.Module):
    """What `predict` does between an observation and an action, as one network."""

    def __init__(self, model: Any, keys: list[str], transposed: set[str]) -> None:
        super().__init__()
        self.policy, self._space = model.policy, model.action_space
        self._keys, self._transposed = keys, transposed
        self._normalize: VecNormalize | None = model.get_vec_normalize_env()

    def forward(self, *observations: torch.Tensor) -> Any:
        seen = {
            key: self._seen(key, value) for key, value in zip(self._keys, observations, strict=True)
        }  # one key "" where the space has none
        actions = self.policy._predict(seen[""] if self._keys == [""] else seen, deterministic=True)
        if isinstance(self._space, spaces.Box):
            low, high = (torch.as_tensor(side) for side in (self._space.low, self._space.high))
            actions = actions.reshape(-1, *self._space.shape)
            if self.policy.squash_output:
                return low + 0.5 * (actions + 1.0) * (high - low)
            return torch.clamp(actions, low, high)
        return actions

    def _seen(self, key: str, value: torch.Tensor) -> torch.Tensor:
        normalize = self._normalize
        if normalize is not None and normalize.norm_obs and (not key or key in normalize.obs_rms):
            rms: Any = normalize.obs_rms[key] if key else normalize.obs_rms
            mean, scale = torch.as_tensor(rms.mean), torch.sqrt(torch.as_tensor(rms.var) + normalize.epsilon)
            value = torch.clamp((value - mean) / scale, -normalize.clip_obs, normalize.clip_obs).float()
        return value.permute(0, 3, 1, 2) if key in self._transposed else value


def write_onnx(model: BaseAlgorithm, path: Path) -> Path:
    """Write a model's policy, and compare it with the model where onnxruntime is installed.

    Returns:
        The file. Its inputs are raw observations, one for each key, first axis the batch; its output is ``action``.

    Raises:
        MissingExtra: If the packages of the extra ``onnx`` are missing.
        PolicyNotStorable: If it is recurrent, takes masks, or acts differently as ONNX.
    """
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None:
        raise MissingExtra("--format onnx needs the packages onnx and onnxscript: pip install 'rltrack[onnx]'.")
    description = describe_policy(model)
    if "reason" in description:
        raise PolicyNotStorable(f"The policy cannot be written as ONNX. {description['reason']}")
    if description["recurrent"] or description["masked"]:
        raise PolicyNotStorable(
            "Policies with a recurrent state or action masks cannot be written as ONNX. Use --format sb3, or rltrack serve."
        )
    raw = space_of(description["input_space"])
    items = dict(raw.spaces) if isinstance(raw, spaces.Dict) else {"": raw}
    transposed = {
        key
        for key, item in items.items()
        if isinstance(item, spaces.Box) and is_image_space(item) and not is_image_space_channels_first(item)
    }
    model.policy.set_training_mode(False)
    model.policy.to("cpu")
    acting = _Acting(model, list(items), transposed)
    observations = sample(raw, 16, np.random.default_rng(0))
    arrays = list(observations.values()) if isinstance(observations, dict) else [observations]
    names = [key or "observation" for key in items]
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch")
    with _without_warnings(), torch.no_grad(), _without_checks_of_values():
        torch.onnx.export(
            acting, tuple(torch.from_numpy(array) for array in arrays), str(path), input_names=names,
            output_names=["action"], dynamic_shapes=[tuple({0: batch} for _ in arrays)], dynamo=True, external_data=False,
            verbose=False,
        )  # fmt: skip
    _compare(model, path, dict(zip(names, arrays, strict=True)), observations)
    return path


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The exporter warns of packages that policies do not need."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _without_checks_of_values() -> Iterator[None]:
    """Distributions look at the values of their parameters, which a traced network does not have."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def _compare(model: Any, path: Path, inputs: dict[str, np.ndarray], observations: Any) -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {item.name for item in session.get_inputs()}
    found = session.run(None, {key: value for key, value in inputs.items() if key in taken})[0]
    normalize = model.get_vec_normalize_env()
    seen = observations if normalize is None else normalize.normalize_obs(observations)
    expected, _ = model.predict(seen, deterministic=True)
    if not np.allclose(found.reshape(expected.shape), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        path.unlink()
        raise PolicyNotStorable("The policy acts differently as ONNX; the file was removed. Use --format sb3.")
