"""The vectorised training environments of a run: the tier by which they take part in an exact resume, capture and restore.

=============  ==================================================================================================
tier           what a version holds
=============  ==================================================================================================
``capture``    the inside of each environment, whole, or what its own ``get_state()`` returns
``replay``     the actions since each environment's last reset; replaying them must give the recorded bits
``cut``        nothing but a seed: at marks every environment is rebuilt and reset (opt-in: it changes what is learned)
``inexact``    nothing: after a resume the environments begin a new episode, and the run is labelled
=============  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from rltrack.agents.env_state import layers
from rltrack.agents.env_state.probe import Finding, probe, probe_copies
from rltrack.agents.env_state.recorder import digest, record, recorder_of
from rltrack.agents.env_state.state_access import seed_spaces
from rltrack.agents.gym_types import Env
from rltrack.agents.restarting import RestartingSubprocVecEnv
from rltrack.checkpoints.encoding import State
from rltrack.cleanup import close_all
from rltrack.errors import ConfigurationError, NotCapturable, ResumeMismatch


class TrainingEnvs:
    """Captures and restores the state of a vectorised environment.

    Args:
        venv: The outermost layer.
        build: Builds one environment as the training ones were built, in this process; None where that is impossible.
        cut: Whether the tier is ``cut``.
        wants_probe: Whether scratch copies may be built to find out what works.

    Attributes:
        tier: ``capture``, ``replay``, ``cut`` or ``inexact``.
        reason: Why the tiers before it are not possible; empty for ``capture``.
        is_probed: Whether scratch copies have shown that it works.
        start: How the environments began: a hash of what they held, or of the first observations where they cannot be captured but
            can be built again, or None. A training that begins again from zero is the same only where this is equal, and not None.
    """

    def __init__(
        self,
        venv: VecEnv,
        build: Callable[[], Env] | None,
        *,
        cut: bool = False,
        wants_probe: bool = True,
    ) -> None:
        self.venv = venv
        self._vec_layers = list(layers.vec_layers(venv))
        self._base: Any = self._vec_layers[-1]
        self._build = build
        self._wants_probe = wants_probe
        self._method: str | None = None
        self._last_cut: State | None = None
        self.tier = "cut" if cut else "inexact"
        self.reason = ""
        self.is_probed = False
        self.start: str | None = None

    # ---- choosing the tier ----

    def prepare(self) -> None:
        """Find out the tier; call it before the first reset.

        Raises:
            ConfigurationError: If the tier is ``cut`` and the environments cannot be rebuilt.
        """
        if isinstance(self._base, RestartingSubprocVecEnv):
            self.tier, self.reason = "inexact", "an environment that crashes is started again alone (restart_crashed)"
            return
        if self.tier == "cut":
            self._refuse_impossible_cut()
            return
        if isinstance(self._base, SubprocVecEnv) and not self._base.has_attr("capture_state"):
            self.reason = (
                "the environments live in other processes; build them with wrapper_class=rltrack.agents.StateAccess"
            )
            return
        if not isinstance(self._base, DummyVecEnv | SubprocVecEnv):
            if layers.has_own_state(self._base):
                self._choose("own", "")
            else:
                self.reason = (
                    f"{type(self._base).__name__} is neither a DummyVecEnv nor a SubprocVecEnv, and has no get_state() and "
                    "set_state(state)"
                )
            return
        finding = self._probe()
        if finding is None:
            return
        self.is_probed = finding.is_shown
        self.reason = "; ".join(finding.reasons)
        if finding.method is not None:
            self._choose(finding.method, self.reason)
        if finding.method == "replay":
            self._record()

    def try_capture(self) -> None:
        """After the first reset: choose the tier where no probe could, and remember how training begins.

        To choose, the environments themselves are captured. A replay is not tried: it may give the recorded bits and continue
        differently, which only a probe finds out.
        """
        if self.tier == "inexact" and not self.reason:
            self._try_methods()
        self.start = self._digest_of_start()

    def _try_methods(self) -> None:
        reasons = []
        core = self._base.envs[0].unwrapped if isinstance(self._base, DummyVecEnv) else None
        for method in ("own", "attributes") if core is not None and layers.has_own_state(core) else ("attributes",):
            try:
                self._capture(method)
            except NotCapturable as error:
                reasons.append(f"{method}: {error}")
                continue
            self._choose(method, "; ".join(reasons))
            return
        self.reason = f"{'; '.join(reasons)}; and no copy could be built to find out whether it can be replayed"

    def give_up(self, reason: str) -> None:
        """From now on the tier is ``inexact``: something besides the environments cannot be captured."""
        self.tier, self.reason, self._method = "inexact", reason, None

    @property
    def restarts(self) -> int:
        """How many crashed environments were started again alone."""
        return self._base.restarts if isinstance(self._base, RestartingSubprocVecEnv) else 0

    def describe(self) -> dict[str, Any]:
        """Return tier, method, whether a probe has shown it, the reason, and how training began, for the record."""
        return {
            "tier": self.tier,
            "method": self._method,
            "probed": self.is_probed,
            "reason": self.reason,
            "start": self.start,
        }

    def release(self) -> None:
        """Stop recording."""
        if isinstance(self._base, DummyVecEnv):
            for env in self._base.envs:
                try:
                    recorder_of(env.unwrapped).remove()
                except NotCapturable:
                    continue

    # ---- capture and restore ----

    def capture(self) -> State | None:
        """Return the state; None where it cannot be taken. If it could be so far, the tier becomes ``inexact``."""
        if self.tier == "cut":
            return None if self._last_cut is None else {**self._vec_state(), "cut": self._last_cut}
        if self._method is None:
            return None
        try:
            return self._capture(self._method)
        except NotCapturable as error:
            self.tier, self.reason = "inexact", str(error)
            return None

    def restore(self, state: State) -> None:
        """Put the state back into environments that were built, and reset once, as the first ones were.

        Raises:
            NotCapturable: If they were built otherwise.
            ResumeMismatch: If they did not come to where they were.
        """
        if "cut" in state:
            self._go_to_cut(state["cut"])
        if "workers" in state:
            for index, worker in enumerate(state["workers"]):
                problem = self.venv.env_method("restore_state", worker, indices=[index])[0]
                if problem is not None:
                    raise ResumeMismatch(problem)
        cores = [] if "cut" in state else self._cores()
        layers.restore(self._vec_layers if "cut" in state else self._all_layers(), cores, state["layers"])

    def cut(self, seed: Sequence[int]) -> VecEnvObs:
        """Truncate every episode, rebuild the environments, and reset them.

        Args:
            seed: Made from the run's seed and its env steps only.

        Returns:
            The first observations.
        """
        seeds = [int(part) for part in np.random.SeedSequence(seed).generate_state(self.venv.num_envs) >> 1]
        self._rebuild(seeds)
        began: list[bytes] = []
        base_reset = self._base.reset

        def reset() -> VecEnvObs:
            observations: VecEnvObs = base_reset()
            began.append(digest(observations))
            return observations

        self._base.reset = reset
        try:
            observations = self.venv.reset()
        finally:
            del self._base.reset
        self._last_cut = {"seeds": seeds, "digest": began[-1]}
        return observations

    def forget_cut(self) -> None:
        """Training continues: the environments are no longer where the last cut left them."""
        self._last_cut = None

    # ---- inside ----

    def _choose(self, method: str, reason: str) -> None:
        self._method, self.reason = method, reason
        self.tier = "replay" if method == "replay" else "capture"

    def _probe(self) -> Finding | None:
        if not self._wants_probe:
            return None
        try:
            if self._build is not None:
                return probe(self._build)
            if isinstance(self._base, DummyVecEnv):
                return probe_copies(self._base.envs[0])
            found: Finding | None = self._base.env_method("probe_copies", indices=[0])[0]
            return found
        except Exception:  # a scratch copy that cannot be built or played says nothing about the training environments
            return None

    def _record(self) -> None:
        if isinstance(self._base, DummyVecEnv):
            for env in self._base.envs:
                record(env.unwrapped)
        else:
            self.venv.env_method("record_episodes")

    def _cores(self) -> list[layers.Layer]:
        return [env.unwrapped for env in self._base.envs] if isinstance(self._base, DummyVecEnv) else [self._base]

    def _all_layers(self) -> Sequence[layers.Layer]:
        if not isinstance(self._base, DummyVecEnv):
            return self._vec_layers
        return [*self._vec_layers, *(layer for env in self._base.envs for layer in layers.gym_layers(env))]

    def _capture(self, method: str) -> State:
        if isinstance(self._base, SubprocVecEnv):
            workers = self.venv.env_method("capture_state", method)
            problem = next((worker["error"] for worker in workers if "error" in worker), None)
            if problem is not None:
                raise NotCapturable(problem)
            return {**self._vec_state(), "workers": workers}
        return {"layers": layers.capture(self._all_layers(), self._cores(), method)}

    def _digest_of_start(self) -> str | None:
        if self._method is None:
            if self._build is None:
                return None
            return digest(self._base._obs_from_buf()).hex() if isinstance(self._base, DummyVecEnv) else "built"
        try:
            if isinstance(self._base, SubprocVecEnv):
                found = [*self.venv.env_method("digest_of_start", self._method)]
                found.append(layers.digest_of_start(self._vec_layers, [], "attributes"))
                return None if None in found else digest(found).hex()
            return layers.digest_of_start(self._all_layers(), self._cores(), self._method)
        except NotCapturable:
            return None

    def _vec_state(self) -> State:
        return {"layers": layers.capture(self._vec_layers, [], "attributes")}

    def _refuse_impossible_cut(self) -> None:
        if isinstance(self._base, DummyVecEnv) and self._build is not None:
            return
        if isinstance(self._base, SubprocVecEnv) and self._base.has_attr("rebuild"):
            return
        raise ConfigurationError(
            "checkpoints.cut_freq rebuilds the environments, which needs environments made by gymnasium.make or from a "
            "configuration. Leave cut_freq out, or register the environment and make it by its id."
        )

    def _rebuild(self, seeds: list[int]) -> None:
        """Rebuild every environment; the next reset uses the seeds."""
        for index, seed in enumerate(seeds):
            if isinstance(self._base, DummyVecEnv):
                assert self._build is not None, "prepare() saw to it"
                close_all(self._base.envs[index])
                self._base.envs[index] = seed_spaces(self._build(), seed)
            else:
                self.venv.env_method("rebuild", seed, indices=[index])
        self._base._seeds = list(seeds)

    def _go_to_cut(self, cut: State) -> None:
        self._rebuild(cut["seeds"])
        if digest(self._base.reset()) != cut["digest"]:
            raise ResumeMismatch(
                "Environments that were rebuilt and reset with the same seed began otherwise than recorded: they depend on "
                "something outside themselves."
            )
        self._last_cut = cut


class Wrappers:
    """What the layers around the environments hold as it is now, to begin with it again.

    Some wrappers remember across resets (SB3's EpisodicLifeEnv continues a game that is not over).
    """

    def __init__(self, venv: VecEnv) -> None:
        vec_layers = list(layers.vec_layers(venv))
        envs = getattr(vec_layers[-1], "envs", ())
        self._layers: list[layers.Layer] = [*vec_layers, *(layer for env in envs for layer in layers.gym_layers(env))]
        self._cores = [env.unwrapped for env in envs]
        self._state: State | None = None
        try:
            self._state = layers.capture(self._layers, self._cores, "leave")
        except NotCapturable:
            return

    def restore(self) -> None:
        """Put it back; does nothing where it could not be taken, or the wrappers changed so that it no longer fits."""
        if self._state is not None:
            try:
                layers.restore(self._layers, self._cores, self._state)
            except NotCapturable:
                self._state = None
