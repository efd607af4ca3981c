"""Stable-Baselines3's algorithms (and sb3-contrib's and SBX's) as agents.

``model.learn()`` is never called: it bends schedules at each call, and offers no consistent moment between two
iterations. The loop here is the body of ``learn()``, one iteration at a time, with the same calls in the same order, so
that the result is bit-identical (``tests/resume/test_same_as_learn.py`` holds this for each algorithm).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from rltrack.acceleration import accelerate
from rltrack.acceleration.patches import Patches
from rltrack.agents import sb3_state
from rltrack.agents.algorithms import ScaledSchedule
from rltrack.agents.attribute_state import AttributeState
from rltrack.agents.base import AgentBase
from rltrack.agents.env_state import TrainingEnvs
from rltrack.agents.environment_section import is_made_by_specification
from rltrack.agents.environments import evaluation_builder, rebuild
from rltrack.agents.policy_check import checked_description
from rltrack.agents.protocol import IterationStats, MakeEnv, Observations, Observer, Reconstruction, State
from rltrack.agents.reconstruction import reconstruct
from rltrack.agents.sb3_attributes import attributes_of_model
from rltrack.agents.sb3_callbacks import CallbackRelay
from rltrack.agents.sb3_description import describe, numerics
from rltrack.agents.sb3_environments import SB3Evaluation, evaluation_env, spec_of, use_environment
from rltrack.agents.sb3_iterations import iteration_of
from rltrack.agents.sb3_observing import MetricsCollector, Relay, losses_in
from rltrack.agents.sb3_replay import ReplayState, end_episodes
from rltrack.config import EnvironmentConfig
from rltrack.errors import NotCapturable, ResumeMismatch

_PARTS = ("policy", "optimizer", "normalization", "counters", "random", "rollout", "environment", "buffers")


class SB3Agent(AgentBase):
    """Drives one SB3 model, iteration by iteration.

    Args:
        model: An SB3, sb3-contrib or SBX algorithm, new or trained before; its counters start from zero in `bind`.
        threads: Torch threads while this agent is bound. One repeats, and is fastest for small networks.
        eval_env_builder: Builds an evaluation ``VecEnv`` of n environments, each around ``prepare(env)``; without one,
            environments are rebuilt from the specification that the training environment carries.
        choices: Settings that were chosen automatically when it was built, and why, for the record.
        acceleration: ``auto``: train with less Python where the bits stay the same (`rltrack.accelerate`); or ``off``.
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        *,
        threads: int = 1,
        eval_env_builder: Callable[[int, Callable[[Any], Any]], VecEnv] | None = None,
        choices: Mapping[str, Any] | None = None,
        acceleration: Literal["auto", "off"] = "auto",
    ) -> None:
        self.model = model
        self.choices = dict(choices or {})
        self.make_env: MakeEnv | None = None
        self.reconstruction: Reconstruction | None = None
        self._probe = True
        self._cuts = False
        self._envs: TrainingEnvs | None = None
        self._replay: ReplayState | None = None
        self._attributes: AttributeState | None = None
        self._frozen: list[str] = []
        self._threads = threads
        self._acceleration = acceleration
        self._eval_env_builder = eval_env_builder
        self._iterate = iteration_of(model)
        self.log_interval = 1
        self.iteration = 0
        self._remaining = 1.0
        self.updates_per_step: float | None = None
        self.relay = Relay()
        self._writer = MetricsCollector()
        self._undo: list[Callable[[], None]] = []

    # ---- what every agent has ----

    def bind(self, env: Any, seed: int | None) -> None:
        """Prepare to train from zero env steps, exactly as ``learn()`` begins."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        self._undo.append(lambda: torch.set_num_threads(threads))
        if self.model.device.type == "cuda":  # convolutions that repeat, where there is a choice
            deterministic = torch.backends.cudnn.deterministic
            torch.backends.cudnn.deterministic = True
            self._undo.append(lambda: setattr(torch.backends.cudnn, "deterministic", deterministic))
        use_environment(self.model, env)
        if self._eval_env_builder is None:
            self._find_out_configuration(threads)
        self.n_envs = self.env.num_envs
        self._envs = TrainingEnvs(self.env, self._build_one(), cut=self._cuts, wants_probe=self._probe)
        self._undo.append(self._envs.release)
        self._envs.prepare()
        if seed is not None:
            self.model.set_random_seed(seed)
        self._writer = MetricsCollector()
        self._undo.append(self._writer.attach(self.model))
        _, callback = self.model._setup_learn(
            self.relay.callbacks.total, self.relay, True, type(self.model).__name__, False
        )
        self.relay = callback  # type: ignore[assignment]
        self.relay.prepare(self.env)
        self._envs.try_capture()
        self._replay = ReplayState(self.model)
        self.iteration = 0
        self._remaining = 1.0
        self.relay.on_training_start({}, {})
        self._undo.append(self.relay.callbacks.close)
        self.relay.callbacks.start(self.model, self.log_interval)
        self._attributes, self._frozen = attributes_of_model(self.model), sb3_state.frozen(self.model)

    def advance(self, observer: Observer) -> IterationStats:
        """Collect a rollout and update, once."""
        before = self.model.num_timesteps
        self._bound_envs.forget_cut()
        self.relay.observer = observer
        with self._our_schedule():
            self._iterate(self)
        self.relay.observer = None
        values = getattr(self.model.logger, "name_to_value", {})
        losses = {**self._writer.losses, **losses_in(values)}
        if isinstance(self.model, OnPolicyAlgorithm) and self.iteration % self.log_interval == 0:
            self.model.dump_logs(self.iteration)
        metrics, excluded = self._writer.take()
        if metrics and (restarts := self._bound_envs.restarts):
            metrics[-1][1]["rollout/env_restarts"] = float(restarts)
        heard = self.relay.callbacks.take()
        return IterationStats(self.model.num_timesteps - before, metrics, losses, excluded, *heard)

    def predict(
        self,
        observation: Observations,
        *,
        state: object = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        **inputs: object,
    ) -> tuple[np.ndarray, object]:
        """Act as the model acts; observations come from the evaluation environment, normalised if the model's are."""
        given: Any = observation
        hidden = cast("tuple[np.ndarray, ...] | None", state)
        return self.model.predict(given, hidden, episode_start, deterministic, **inputs)

    def set_schedule(self, remaining: float) -> None:
        """Receive the remaining fraction of the budget; the model reads it at the moments at which SB3 computes it."""
        self._remaining = remaining

    # ---- what an agent may have ----

    def capture(self) -> State:
        """Return the complete state, environments included where they can be taken (see `TrainingEnvs`)."""
        return self.capture_parts(_PARTS)

    def capture_parts(self, parts: Collection[str]) -> State:
        """Return some parts of the state, without the cost of the others."""
        assert self._replay is not None, "bind() comes first"
        assert self._attributes is not None
        state = sb3_state.capture(self.model, parts)
        if "counters" in parts:
            state["counters"]["iteration"] = self.iteration
            state["counters"]["running_episodes"] = self.relay.counter.state_dict()
            if self.relay.callbacks:
                state["counters"]["callbacks"] = self.relay.callbacks.state_dict()
            if changed := self._attributes.capture():
                state["counters"]["attributes"] = changed
            if (frozen := sb3_state.frozen(self.model)) != self._frozen:
                state["counters"]["frozen"] = frozen
            if (reason := self._not_captured) is not None:
                state["not_captured"] = reason
        if "buffers" in parts:
            state["buffers"] = {"replay": self._replay.capture()}
        if "environment" in parts:
            state["environment"] = self._bound_envs.capture()
            if state["environment"] is not None and self.relay.callbacks:
                state["environment"]["callbacks"] = self.relay.callbacks.capture_environments()
            try:
                objects = self._replay.capture_objects()
            except NotCapturable as error:
                self._bound_envs.give_up(str(error))
                objects, state["environment"] = None, None
            if objects is not None and state["environment"] is not None:
                state["environment"]["replay_objects"] = objects
        return state

    def restore(self, state: State) -> None:
        """Overwrite the given parts in place.

        Raises:
            ResumeMismatch: If the environments did not come to where they were; they begin a new episode.
        """
        try:
            sb3_state.restore(self.model, state, self._envs, self._replay)
        except ResumeMismatch:
            self.model._last_obs = self.env.reset()  # type: ignore[assignment]
            raise
        objects = (state.get("environment") or {}).get("replay_objects")
        if objects is not None and self._replay is not None:
            self._replay.restore_objects(objects)
        counters = state.get("counters", {})
        self.iteration = counters.get("iteration", self.iteration)
        if "counters" in state:
            sb3_state.freeze(self.model, counters.get("frozen"))
            if self._attributes is not None:
                self._attributes.restore(counters.get("attributes", ()))
            self.relay.callbacks.load_state_dict(counters.get("callbacks", ()))
        self.relay.callbacks.restore_environments((state.get("environment") or {}).get("callbacks", {}))
        if state.get("environment") is not None:
            self.relay.counter.load_state_dict(counters.get("running_episodes"))

    def take_make_env(self, make_env: MakeEnv | None) -> None:
        """Hear, before `bind`, what makes one environment: ``package.module:Name``, for a model whose environment does not say."""
        self.make_env = make_env

    def take_callbacks(self, callbacks: Sequence[Any], total_timesteps: int | None) -> None:
        """Take a user's SB3 callbacks, and the total that they and the model see, as after ``learn(total_timesteps)``."""
        self.relay = Relay(CallbackRelay(callbacks, total_timesteps))

    def end_training(self) -> None:
        """Call the callbacks' `on_training_end`."""
        self.relay.callbacks.end()

    def describe_configuration(self) -> Reconstruction | None:
        """Return what a configuration can say about the model of a script; None where a configuration made it."""
        return self.reconstruction

    def allow_probe(self, allowed: bool) -> None:
        """Say, before `bind`, whether two scratch copies may be built to find out how environments can be taken."""
        self._probe = allowed

    def accelerate(self) -> None:
        """Train with less Python from now on, until `release`; the result is the same in every bit."""
        if self._acceleration == "off":
            self.choices["acceleration"] = {"chosen": "off", "reason": "as configured"}
            return
        report = accelerate(self.model)
        self._undo.append(report.undo)
        self.choices["acceleration"] = report.in_short()

    def cut_environments(self, wanted: bool) -> None:
        """Say, before `bind`, whether environments take part by cuts instead of by their state."""
        self._cuts = wanted

    def cut(self) -> None:
        """End every episode here, rebuild the environments, and reset them with seeds derived from the env steps."""
        model: Any = self.model
        end_episodes(model)
        self.relay.prepare(self.env)
        sb3_state.start_episodes(model, self._bound_envs.cut([model.seed or 0, model.num_timesteps]))

    def make_evaluation_env(self, env: Any, n_envs: int) -> SB3Evaluation:
        """Build environments like the training ones, or take the given `env`, with frozen normalisation.

        Raises:
            EvaluationUnavailable: If none can be built.
        """

        def build() -> VecEnv:
            return evaluation_env(self.model, env, n_envs, self._eval_env_builder)

        venv = build()
        forgets = self._envs is None or self._envs.tier in ("capture", "replay")
        return SB3Evaluation(venv, self.env, self.model, None if forgets or env is not None else build)

    def why_not_exact(self) -> str | None:
        """Return why a resume cannot be exact, or None."""
        if self._bound_envs.tier == "inexact":
            return f"the environments begin a new episode: {self._bound_envs.reason}"
        return self.relay.callbacks.why_not_exact() or self._not_captured

    @property
    def _not_captured(self) -> str | None:
        own = None if self._attributes is None else self._attributes.not_captured
        return own or self.relay.callbacks.not_captured

    def describe_resume(self) -> dict[str, Any]:
        """Return the tier by which the environments take part in a resume, and why (`TrainingEnvs.describe`)."""
        return self._bound_envs.describe()

    def is_seeded(self) -> bool:
        """Whether the model would begin alike if it began again."""
        return self.model.seed is not None

    def describe_choices(self) -> dict[str, Any]:
        """Return what ``auto`` chose for each setting, and why."""
        return self.choices

    def numerics(self) -> dict[str, Any]:
        """Return what else decides about bits: threads, instruction set, device."""
        return numerics(self.model)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the model's learning-rate schedule by `factor` from now on."""
        schedule = self.model.lr_schedule
        inner = schedule.schedule if isinstance(schedule, ScaledSchedule) else schedule
        self.model.lr_schedule = ScaledSchedule(inner, factor)

    def update_per_episode(self) -> str | None:
        """Make one iteration of an off-policy agent one episode, with as many updates per env step as before."""
        if not isinstance(self.model, OffPolicyAlgorithm):
            return None
        if self.env.num_envs > 1:
            return f"SB3 counts in episodes for a single environment only, and here are {self.env.num_envs}"
        model: Any = self.model
        train_freq = model.train_freq
        if isinstance(train_freq, TrainFreq) and train_freq.unit == TrainFrequencyUnit.STEP:
            steps = model.gradient_steps
            self.updates_per_step = 1.0 if steps < 0 else steps / train_freq.frequency
            model.train_freq = TrainFreq(1, TrainFrequencyUnit.EPISODE)
            if self._attributes is not None:
                self._attributes.remember()

            def put_back() -> None:
                model.train_freq = train_freq
                self.updates_per_step = None

            self._undo.append(put_back)
        return None

    @property
    def collects_whole_episodes(self) -> bool:
        """Whether an iteration ends with an episode only."""
        train_freq = getattr(self.model, "train_freq", None)
        return isinstance(train_freq, TrainFreq) and train_freq.unit == TrainFrequencyUnit.EPISODE

    def set_log_interval(self, interval: int) -> None:
        """Log every `interval` iterations (on-policy) or finished episodes (off-policy)."""
        self.log_interval = interval

    def describe(self) -> dict[str, Any]:
        """Return algorithm, every resolved hyperparameter, environment and spaces."""
        return describe(self.model)

    def describe_policy(self) -> dict[str, Any]:
        """Return how the policy is built, as plain data, after comparing; or ``reason``: why it cannot be stored as a model."""
        return checked_description(self.model)

    def release(self) -> None:
        """Restore threads, logger and what EPISODIC changed."""
        while self._undo:
            self._undo.pop()()

    # ---- inside ----

    @property
    def _bound_envs(self) -> TrainingEnvs:
        assert self._envs is not None, "bind() comes first"
        return self._envs

    def _find_out_configuration(self, script_threads: int) -> None:
        """Find out how a script's model and environment can be built again; where only that helps, evaluate in such ones."""
        model: Any = self.model
        found = self.reconstruction = reconstruct(model, self.make_env, may_build=self._probe)
        if self._threads != 1:
            found.agent["threads"] = self._threads
        if script_threads != self._threads:
            found.agent["build_threads"] = script_threads
        if found.is_complete and not is_made_by_specification(self.env, found.environment):
            section = EnvironmentConfig.model_validate(found.environment)
            self._eval_env_builder = evaluation_builder(section, gamma=getattr(model, "gamma", 0.99))

    def _build_one(self) -> Callable[[], Any] | None:
        """Return a function that builds one environment as training has them, or None if that is impossible."""
        if (build := self._eval_env_builder) is not None:
            return lambda: build(1, lambda env: env).unwrapped.envs[0]  # type: ignore[attr-defined]
        spec = spec_of(self.env)
        return None if spec is None else lambda: Monitor(rebuild(spec, self.env))

    @property
    def env(self) -> VecEnv:
        """The vectorised training environment."""
        assert self.model.env is not None
        return self.model.env

    @contextmanager
    def _our_schedule(self) -> Iterator[None]:
        """Where SB3 computes the remaining progress from its own total, give it ours instead."""

        def ours(num_timesteps: int, total_timesteps: int) -> None:
            self.model._current_progress_remaining = self._remaining

        with Patches() as patches:  # callbacks may save the model
            patches.replace_in_model(self.model, "_update_current_progress_remaining", ours)
            self.relay.schedule = self.set_schedule
            yield
