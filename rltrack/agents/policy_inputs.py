"""What a caller gives to a stored policy, checked and converted to the dtypes of its spaces; and the policy's answer.

Like `exported_policy`, this module needs nothing else of rltrack, and a copy of it lies in every stored model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from .exported_policy import ExportedPolicy

_NESTED = "observation."
_SHOWN_KEYS = 20


class BadInput(ValueError):
    """An input that the policy does not accept; the message has one line."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of one call, as arrays of the spaces' dtypes.

    Attributes:
        observation: First axis ``(n,)``; a dictionary of such where the space is one.
        count: n.
        is_single: Whether the caller gave one observation without a batch axis.
        action_masks: bool, shape ``(n, choices)``; None without masks.
        episode_start: bool, shape ``(n,)``; None for policies that are not recurrent.
        state: float32, shape ``(n, 2, layers, units)``; None likewise.
    """

    observation: np.ndarray | dict[str, np.ndarray]
    count: int
    is_single: bool
    action_masks: np.ndarray | None = None
    episode_start: np.ndarray | None = None
    state: np.ndarray | None = None


def read_inputs(policy: ExportedPolicy, given: object, *, clip: bool = False) -> Inputs:
    """Check what a caller gives, and convert it.

    Args:
        policy: An `ExportedPolicy`.
        given: Observations; for policies with masks or a recurrent state a mapping with ``observation`` (or
            ``observation.KEY``), ``action_masks``, ``episode_start`` and ``state``. One observation, or a batch of them.
            Without ``state`` an episode begins; without ``episode_start`` it continues.
        clip: Clip values outside of a Box to its bounds, rather than refuse them.

    Raises:
        BadInput: With what was found and what is expected.
    """
    extras: dict[str, object] = {}
    if policy.is_masked or policy.is_recurrent:
        if not isinstance(given, Mapping):
            raise BadInput(f"The input is {_kind(given)}. Expected: an object with {_wanted(policy)}.")
        extras = {key: value for key, value in given.items() if key != "observation" and not _is_nested(key)}
        _check_keys(extras, {"action_masks"} if policy.is_masked else {"episode_start", "state"}, policy)
        nested = {key.removeprefix(_NESTED): value for key, value in given.items() if _is_nested(key)}
        if bool(nested) == ("observation" in given):
            raise BadInput(f"The observation is missing or given twice. Expected: an object with {_wanted(policy)}.")
        given = nested or given["observation"]
    observation, count, is_single = _observations(policy.observation_space, given, clip)
    if policy.is_masked:
        masks = _masks(policy.action_space, extras.get("action_masks"), count, is_single)
        return Inputs(observation, count, is_single, action_masks=masks)
    if policy.is_recurrent:
        states, start = _recurrent(policy, extras, count, is_single)
        return Inputs(observation, count, is_single, episode_start=start, state=states)
    return Inputs(observation, count, is_single)


def act(policy: ExportedPolicy, inputs: Inputs, *, deterministic: bool = True) -> Any:
    """Return actions, first axis as of the observations; for recurrent policies a mapping of ``action`` and ``state``."""
    if policy.is_masked:
        return policy.predict(inputs.observation, deterministic=deterministic, action_masks=inputs.action_masks)[0]
    if not policy.is_recurrent:
        return policy.predict(inputs.observation, deterministic=deterministic)[0]
    assert inputs.state is not None, "read_inputs gives one to a recurrent policy"
    states = np.moveaxis(inputs.state, 0, 2)  # hidden and cell, layers, batch, units
    actions, (hidden, cell) = policy.predict(
        inputs.observation,
        state=(states[0], states[1]),
        episode_start=inputs.episode_start,
        deterministic=deterministic,
    )
    return {"action": actions, "state": np.moveaxis(np.stack([hidden, cell]), 2, 0).astype(np.float32)}


def _is_nested(key: object) -> bool:
    return isinstance(key, str) and key.startswith(_NESTED)


def _wanted(policy: ExportedPolicy) -> str:
    return "observation and action_masks" if policy.is_masked else "observation, and optionally state and episode_start"


def _check_keys(found: Mapping[str, object], allowed: set[str], policy: ExportedPolicy) -> None:
    unknown = [str(key)[:60] for key in found if key not in allowed]
    if unknown:
        raise BadInput(f"Unknown keys: {', '.join(unknown[:_SHOWN_KEYS])}. Expected: {_wanted(policy)}.")


# ---- observations ----


def _observations(
    space: spaces.Space[Any], given: object, clip: bool
) -> tuple[np.ndarray | dict[str, np.ndarray], int, bool]:
    if not isinstance(space, spaces.Dict):
        return _one_space(space, given, "The observation", clip)
    known = ", ".join(space.spaces)
    if not isinstance(given, Mapping):
        raise BadInput(f"The observation is {_kind(given)}. Expected: an object with the keys {known}.")
    unknown = [str(key)[:60] for key in given if key not in space.spaces]
    missing = [key for key in space.spaces if key not in given]
    for word, keys in (("Missing", missing), ("Unknown", unknown)):
        if keys:
            raise BadInput(f"{word} keys of the observation: {', '.join(keys[:_SHOWN_KEYS])}. Expected: {known}.")
    found = {
        key: _one_space(item, given[key], f"The observation's '{key}'", clip) for key, item in space.spaces.items()
    }
    counts = {key: None if is_single else count for key, (_, count, is_single) in found.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{key}: {'no batch' if count is None else count}" for key, count in counts.items())
        raise BadInput(f"The keys of the observation have different numbers of observations ({lengths}).")
    _, count, is_single = next(iter(found.values()))
    return {key: array for key, (array, _, _) in found.items()}, count, is_single


def _one_space(space: Any, given: object, what: str, clip: bool) -> tuple[np.ndarray, int, bool]:
    array, is_single = _batched(_as_array(given, what), space.shape, what)
    low: Any
    high: Any
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    elif isinstance(space, spaces.Discrete):
        low, high, clip = space.start, space.start + space.n - 1, False
    elif isinstance(space, spaces.MultiDiscrete):
        low, high, clip = space.start, space.start + space.nvec - 1, False
    else:  # MultiBinary
        low, high, clip = 0, 1, False
    if clip:
        _check_finite(array, what)
        array = np.clip(array, low, high)
    array = _cast(array, np.dtype(space.dtype), what)
    outside = (array < low) | (array > high)
    if outside.any():
        index = tuple(np.argwhere(outside)[0])
        lower, upper = (np.broadcast_to(side, array.shape)[index] for side in (low, high))
        hint = " The parameter clip=true clips it." if isinstance(space, spaces.Box) else ""
        place = list(map(int, index[1:] if is_single else index))
        raise BadInput(f"{what} at {place} is {array[index]}. Allowed: {lower} to {upper}.{hint}")
    return array, len(array), is_single


def _as_array(given: object, what: str) -> np.ndarray:
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise BadInput(f"{what} is no array: its rows differ in length.") from None
    if array.dtype.kind not in "biuf":
        raise BadInput(f"{what} holds something else than numbers. Expected: numbers, in lists of equal length.")
    return array


def _batched(array: np.ndarray, shape: tuple[int, ...], what: str) -> tuple[np.ndarray, bool]:
    if array.shape == shape:
        return array[None], True
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape or not len(array):
        many = f"(n{''.join(f', {length}' for length in shape)}{'' if shape else ','})"
        raise BadInput(
            f"{what} has the shape {array.shape}. Expected: {shape} for one observation, or {many} for n of them."
        )
    return array, False


def _check_finite(array: np.ndarray, what: str) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = tuple(np.argwhere(~np.isfinite(array))[0])
        raise BadInput(f"{what} holds {array[index]}. Expected: finite numbers.")


def _cast(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """Convert without loss; floating-point numbers are rounded to the nearest, as everywhere."""
    _check_finite(array, what)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(dtype)
        is_equal = (found.astype(array.dtype) == array) & ((found < 0) == (array < 0))
    is_kept = np.isfinite(found) if dtype.kind == "f" else is_equal
    if not is_kept.all():
        value = array[tuple(np.argwhere(~is_kept)[0])]
        raise BadInput(f"{what} holds {value}, which is no {dtype}.")
    return found


# ---- masks and recurrent states ----


def _masks(space: Any, given: object, count: int, is_single: bool) -> np.ndarray:
    what = "action_masks"
    if isinstance(space, spaces.Discrete):
        choices = [int(space.n)]
    elif isinstance(space, spaces.MultiDiscrete):
        choices = [int(n) for n in space.nvec]
    else:
        choices = [2] * int(space.n)
    if given is None:
        raise BadInput(f"action_masks is missing. Expected: {sum(choices)} values, 1 for each allowed choice, else 0.")
    masks = _extra(given, (sum(choices),), count, is_single, np.dtype(bool), what)
    parts = np.split(masks, np.cumsum(choices)[:-1], axis=1)
    if not all(part.any(axis=1).all() for part in parts):
        raise BadInput("action_masks allows no action at all. Expected: at least one 1 for each choice.")
    return masks


def _recurrent(
    policy: ExportedPolicy, extras: Mapping[str, object], count: int, is_single: bool
) -> tuple[np.ndarray, np.ndarray]:
    is_new = extras.get("state") is None
    if is_new:
        states = np.zeros((count, *policy.state_shape), np.float32)
    else:
        states = _extra(extras["state"], policy.state_shape, count, is_single, np.dtype(np.float32), "state")
    if extras.get("episode_start") is None:
        return states, np.full(count, is_new)
    return states, _extra(extras["episode_start"], (), count, is_single, np.dtype(bool), "episode_start")


def _extra(given: Any, shape: tuple[int, ...], count: int, is_single: bool, dtype: np.dtype, what: str) -> np.ndarray:
    array, alone = _batched(_as_array(given, what), shape, what)
    if len(array) != count or (alone and not is_single):
        raise BadInput(f"{what} is for {len(array)} observations, and {count} were given.")
    return _cast(array, dtype, what)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
