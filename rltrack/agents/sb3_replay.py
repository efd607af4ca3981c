"""The replay buffer of an off-policy model: rows as a ring that a store takes piece by piece, the rest as it is.

SB3's own buffers never change a row once the next one is written, with three exceptions that are taken whole: the next
observation of a memory-optimised buffer, and the starts and lengths of HER's episodes, which are written backwards. A
buffer of another class may keep anything anywhere; it is pickled, and only a resume reads that.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from rltrack.checkpoints.rings import Ring, fill
from rltrack.errors import ConfigurationError, NotCapturable

_KNOWN = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer)
_BACKWARDS = ("ep_start", "ep_length")
_NOT_STATE = ("env", "device", "observation_space", "action_space")


class ReplayState:
    """Takes and puts back the replay buffer of one model.

    Args:
        model: Bound, with no env step taken yet.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model
        replay = self._replay
        self._before = 0 if replay is None else replay.pos + (replay.buffer_size if replay.full else 0)

    def capture(self) -> dict[str, Any]:
        """Return the buffer as plain data and a `Ring`; empty where there is none, or one of another class."""
        replay = self._replay
        if replay is None or not is_stored_by_rows(replay):
            return {}
        saved: dict[str, Any] = {"pos": int(replay.pos), "full": bool(replay.full)}
        saved["rows"] = Ring(_ring_arrays(replay), self._written(replay))
        if replay.optimize_memory_usage:
            saved["next_observation"] = replay.observations[replay.pos].copy()
        if isinstance(replay, HerReplayBuffer):
            filled = replay.buffer_size if replay.full else replay.pos
            saved["episodes"] = {name: getattr(replay, name)[:filled].copy() for name in _BACKWARDS}
            saved["current_episode_start"] = replay._current_ep_start.copy()
        return saved

    def capture_objects(self) -> bytes | None:
        """Return what only a pickle can hold: HER's infos, or a buffer of another class; None if there is nothing.

        Raises:
            NotCapturable: If it cannot be pickled.
        """
        replay = self._replay
        if replay is None:
            return None
        if isinstance(replay, HerReplayBuffer) and type(replay) in _KNOWN:
            if not replay.copy_info_dict:
                return None
            objects: Any = {"infos": replay.infos[: replay.buffer_size if replay.full else replay.pos]}
        elif type(replay) in _KNOWN:
            return None
        else:
            objects = {name: value for name, value in vars(replay).items() if name not in _NOT_STATE}
        try:
            return pickle.dumps(objects, protocol=5)
        except Exception as error:
            raise NotCapturable(f"The replay buffer, a {type(replay).__name__}, cannot be pickled: {error}.") from None

    def restore(self, saved: dict[str, Any]) -> None:
        """Put back what `capture` returned.

        Raises:
            ConfigurationError: If the buffer has another size.
        """
        replay = self._replay
        if replay is None or not saved:
            return
        ring = saved["rows"]
        if ring.capacity != replay.buffer_size:
            raise ConfigurationError(
                f"The saved replay buffer holds {ring.capacity} rows, this one {replay.buffer_size}. Build the agent "
                "with the buffer_size and the number of environments with which it was saved."
            )
        fill(_ring_arrays(replay), ring.chunks())
        replay.pos, replay.full = saved["pos"], saved["full"]
        self._before = ring.written - self._rows_of_run()
        if "next_observation" in saved:
            replay.observations[replay.pos] = saved["next_observation"]
        if isinstance(replay, HerReplayBuffer):
            for name, values in saved["episodes"].items():
                getattr(replay, name)[: len(values)] = values
            replay._current_ep_start = np.array(saved["current_episode_start"])

    def restore_objects(self, pickled: bytes) -> None:
        """Put back what `capture_objects` returned."""
        replay: Any = self._replay
        objects = pickle.loads(pickled)
        infos = objects.get("infos")
        if type(replay) in _KNOWN:
            replay.infos[: len(infos)] = infos
        else:
            vars(replay).update(objects)

    @property
    def _replay(self) -> ReplayBuffer | None:
        replay = getattr(self._model, "replay_buffer", None)
        return replay if isinstance(replay, ReplayBuffer) else None

    def _rows_of_run(self) -> int:
        return int(self._model.num_timesteps) // self._model.n_envs

    def _written(self, replay: ReplayBuffer) -> int:
        written = self._before + self._rows_of_run()
        if written % replay.buffer_size != replay.pos or (written >= replay.buffer_size) != replay.full:
            # something else writes to it too: count on, a whole lap further, so that no row passes for one that is stored
            self._before += replay.buffer_size + (replay.pos - written) % replay.buffer_size
            written = self._before + self._rows_of_run()
        return written


def is_stored_by_rows(replay: ReplayBuffer) -> bool:
    """Whether it is one of SB3's own; others are pickled whole."""
    return type(replay) in _KNOWN


def end_episodes(model: Any) -> None:
    """Mark the newest transitions as the last ones of truncated episodes, so that nothing bootstraps over a cut."""
    replay = getattr(model, "replay_buffer", None)
    if not isinstance(replay, ReplayBuffer) or (replay.pos == 0 and not replay.full):
        return
    if isinstance(replay, HerReplayBuffer):
        if (replay._current_ep_start != replay.pos).any():
            replay.truncate_last_trajectory()
    elif isinstance(replay, NStepReplayBuffer):
        replay.dones[replay.pos - 1] = 1.0
        replay.timeouts[replay.pos - 1] = 1.0
    elif replay.optimize_memory_usage:  # the next observation is about to be overwritten by a reset's
        replay.dones[replay.pos - 1] = 1.0


def _ring_arrays(replay: ReplayBuffer) -> dict[str, np.ndarray]:
    """Every array whose first axis is the ring, by name; those in dictionaries as ``observations/key``."""
    found: dict[str, np.ndarray] = {}
    for name, value in vars(replay).items():
        if name in _BACKWARDS:
            continue
        for key, array in value.items() if isinstance(value, dict) else [(None, value)]:
            fits = isinstance(array, np.ndarray) and array.shape[:1] == (replay.buffer_size,) and array.dtype != object
            if fits:
                found[name if key is None else f"{name}/{key}"] = array
    return found
