"""Environments in processes of their own, of which a crashed one is started again alone.

The crash cannot be repeated, so a training that uses this is never exact; the other environments do not notice.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import CloudpickleWrapper, SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs, _worker

_LOST = (EOFError, ConnectionError)
_MOST_IN_A_ROW = 3
_CLOSE_SECONDS = 5.0
_logger = logging.getLogger("rltrack")


class RestartingSubprocVecEnv(SubprocVecEnv):
    """SB3's SubprocVecEnv, in which a worker whose process ended is replaced and reset.

    The episode that it was in ends truncated at the last observation that was seen, with reward 0 for the lost step; its
    return and length are reported as Monitor reports them. `restarts` counts.

    Args:
        env_fns: Build the environments.
        start_method: As SB3's.

    Raises:
        RuntimeError: If an environment crashes three times without a step in between.
    """

    def __init__(self, env_fns: list[Callable[[], Any]], start_method: str | None = None) -> None:
        self.restarts = 0
        self._build = list(env_fns)
        self._in_a_row = [0] * len(env_fns)
        self._returns, self._lengths = np.zeros(len(env_fns)), np.zeros(len(env_fns), dtype=int)
        self._seen: list[Any] = [None] * len(env_fns)
        self._base_seed = 0
        self._began = time.time()
        methods = multiprocessing.get_all_start_methods()
        self._start_method = start_method or ("forkserver" if "forkserver" in methods else "spawn")
        super().__init__(env_fns, self._start_method)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """As SB3's; what is started again gets seeds made from this one."""
        self._base_seed = 0 if seed is None else seed
        return super().seed(seed)

    def step_async(self, actions: np.ndarray) -> None:
        """Send each environment its action."""
        for remote, action in zip(self.remotes, actions, strict=True):
            with contextlib.suppress(*_LOST):  # found out when its answer is awaited
                remote.send(("step", action))
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """Return what the environments answer, with the end of an episode for one that is gone."""
        results = [self._answer(index) for index in range(self.num_envs)]
        self.waiting = False
        observations, rewards, dones, infos, self.reset_infos = zip(*results, strict=True)  # type: ignore[assignment]
        self._seen = list(observations)
        return _stack_obs(observations, self.observation_space), np.stack(rewards), np.stack(dones), infos  # type: ignore[return-value]

    def reset(self) -> Any:
        """Reset all environments, those that are gone after a new start."""
        answers = []
        for index in range(self.num_envs):
            try:
                self.remotes[index].send(("reset", (self._seeds[index], self._options[index])))
                answers.append(self.remotes[index].recv())
            except _LOST:
                answers.append(self._start_again(index))
        observations, self.reset_infos = zip(*answers, strict=True)  # type: ignore[assignment]
        self._reset_seeds()
        self._reset_options()
        self._seen = list(observations)
        self._returns[:], self._lengths[:] = 0.0, 0
        return _stack_obs(observations, self.observation_space)

    def close(self) -> None:
        """Close the environments that are there."""
        if self.closed:
            return
        for remote, process in zip(self.remotes, self.processes, strict=True):
            with contextlib.suppress(*_LOST, OSError):
                if self.waiting:
                    remote.recv()
                remote.send(("close", None))
            process.join(_CLOSE_SECONDS)
            if process.is_alive():
                process.kill()
            remote.close()
        self.closed = True

    def _answer(self, index: int) -> tuple[Any, ...]:
        try:
            answer: tuple[Any, ...] = self.remotes[index].recv()
        except _LOST:
            return self._end_episode(index)
        self._in_a_row[index] = 0
        self._returns[index] += float(answer[1])
        self._lengths[index] += 1
        if answer[2]:
            self._returns[index] = self._lengths[index] = 0
        return answer

    def _end_episode(self, index: int) -> tuple[Any, ...]:
        last = self._seen[index]
        observation, reset_info = self._start_again(index)
        length, seconds = int(self._lengths[index]) + 1, time.time() - self._began
        episode = {"r": round(float(self._returns[index]), 6), "l": length, "t": round(seconds, 6)}
        self._returns[index] = self._lengths[index] = 0
        info = {"TimeLimit.truncated": True, "terminal_observation": last, "episode": episode}
        return observation, 0.0, True, info, reset_info

    def _start_again(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Replace a worker; return the first observation of its new environment."""
        while True:
            self.restarts += 1
            self._in_a_row[index] += 1
            exit_code = self._bury(index)
            if self._in_a_row[index] >= _MOST_IN_A_ROW:
                raise RuntimeError(
                    f"Environment {index} crashed {_MOST_IN_A_ROW} times in a row without a step in between (exit code "
                    f"{exit_code}); it is not started again."
                )
            _logger.warning(
                f"Environment {index} crashed (exit code {exit_code}); it is started again, its episode truncated"
            )
            context: Any = multiprocessing.get_context(self._start_method)
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_worker, args=(theirs, ours, CloudpickleWrapper(self._build[index])), daemon=True
            )
            process.start()
            theirs.close()
            self.remotes = tuple(ours if place == index else remote for place, remote in enumerate(self.remotes))
            self.processes[index] = process
            seed = np.random.SeedSequence([self._base_seed, index, self.restarts]).generate_state(1)[0] >> 1
            try:
                ours.send(("reset", (int(seed), None)))
                return ours.recv()  # type: ignore[no-any-return]
            except _LOST:
                continue

    def _bury(self, index: int) -> int | None:
        self.remotes[index].close()
        process: Any = self.processes[index]
        process.join(1.0)
        if process.is_alive():
            process.kill()
            process.join()
        exit_code: int | None = process.exitcode
        return exit_code
