"""Getting ready to train: everything that is decided before the first iteration, and undone after the last."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rltrack import damage
from rltrack.agents import as_agent
from rltrack.agents.environments import default_evaluation, make_gym_env
from rltrack.agents.protocol import LEARNER_PARTS, POLICY_PARTS, Agent, EvaluationEnvironment, State
from rltrack.agents.random_state import untouched_random_streams
from rltrack.cleanup import cleaning_up, close_all
from rltrack.errors import ConfigurationError, EvaluationUnavailable, NotCapturable, ResumeMismatch, RunDamaged
from rltrack.evaluation.episodes import Evaluator, episode_seeds
from rltrack.evaluation.pending import EvaluationBeside, EvaluationHere, PendingEvaluation, Player
from rltrack.identity import identity
from rltrack.provenance import package_versions
from rltrack.tracking.destination import Destination, read_destination, resolve_destination, write_destination
from rltrack.tracking.metrics import MetricsTracker
from rltrack.training.progress import TrainingState
from rltrack.training.session import RunSession
from rltrack.training.strategies import Adaptive

if TYPE_CHECKING:
    from rltrack.checkpoints import Version
    from rltrack.runs import RunDirectory
    from rltrack.training.train_loop import TrainingLoop

_logger = logging.getLogger("rltrack")


class SetUp:
    """What a training loop works with. `close` undoes it.

    Args:
        agent: The bound agent.
        session: The open run.
        evaluator: Judges the policy; None where there is no environment for it.
        player: Evaluates beside training; None to evaluate between iterations.
        needs_learner: Whether the best policy is kept with its optimizer, for the ADAPTIVE strategy to return to.
        resources: What to release in the end.
    """

    def __init__(
        self,
        agent: Agent,
        session: RunSession,
        evaluator: Evaluator | None,
        player: Player | None,
        *,
        needs_learner: bool,
        resources: contextlib.ExitStack,
    ) -> None:
        self.agent: Any = agent
        self.session = session
        self.evaluator = evaluator
        self.evaluates_beside = player is not None
        self.best_parts = LEARNER_PARTS if needs_learner else POLICY_PARTS
        self._player = player
        self.can_capture = callable(getattr(agent, "capture", None)) and callable(getattr(agent, "restore", None))
        self.closed = False
        self._resources = resources

    def begin_evaluation(self, env_steps: int, policy: State | None = None) -> PendingEvaluation:
        """Begin to play the evaluation's episodes.

        Args:
            env_steps: Env steps of training at which the policy was frozen.
            policy: Its parts; None for the agent's own, as they are.

        Raises:
            EvaluationUnavailable: If there is no environment for it.
        """
        if self.evaluator is None:
            raise EvaluationUnavailable(
                "This training has no evaluation. Set eval_freq, and pass eval_env= if it asks for one."
            )
        if self._player is None:
            return EvaluationHere(self.evaluator, env_steps)
        return EvaluationBeside(self._player, env_steps, policy or self.capture(self.best_parts))

    def capture(self, parts: Sequence[str] | None = None) -> State:
        """Return the agent's state: the given parts, or all of them."""
        if parts is not None and callable(getattr(self.agent, "capture_parts", None)):
            return dict(self.agent.capture_parts(parts))
        state: State = self.agent.capture()
        return {part: value for part, value in state.items() if parts is None or part in parts}

    def restore(self, state: State) -> None:
        """Put parts of the agent's state back."""
        self.agent.restore(state)

    def why_not_exact(self) -> str | None:
        """Return why a resume would differ from a run that was never interrupted, or None."""
        if not callable(getattr(self.agent, "why_not_exact", None)):
            return f"{type(self.agent).__name__} does not say that its state is complete (why_not_exact)"
        return self.agent.why_not_exact()  # type: ignore[no-any-return]

    def describe_resume(self) -> dict[str, Any] | None:
        """Return by which tier the environments take part in a resume, if the agent knows."""
        described = _call(self.agent, "describe_resume")
        return None if described is None else dict(described)

    def numerics(self) -> dict[str, Any]:
        """Return what decides about bits beside the versions of packages."""
        return dict(_call(self.agent, "numerics") or {})

    def scale_learning_rate(self, factor: float) -> None:
        """Set the factor on the agent's learning rate."""
        self.agent.scale_learning_rate(factor)

    def close(self) -> None:
        """Release the run, the environments and the agent, in that order."""
        self.closed = True
        self._resources.close()


def set_up(loop: TrainingLoop, agent: Any, env: Any, eval_env: Any) -> SetUp:
    """Bind the agent, build the evaluation, open the run, restore its newest version.

    Whatever can be wrong is found out before the run's folder is made.
    """
    if agent is None:
        raise ConfigurationError("TrainingLoop has no agent. Pass one to TrainingLoop(agent, env) or run(agent, env).")
    adapted = as_agent(agent)
    _check_strategy(loop, adapted)
    with contextlib.ExitStack() as resources:
        _call(adapted, "set_log_interval", loop.settings.tracking.log_interval)
        _prepare_checkpoints(loop, adapted)
        if callable(getattr(adapted, "release", None)):
            resources.callback(_release, adapted)
        adapted.bind(env if _prepares_environments(adapted) else _plain_env(env), loop.seed)
        notes = _update_per_episode(loop, adapted)
        evaluation_env, why_not = _evaluation_env(loop, adapted, env, eval_env)
        evaluator = None
        if evaluation_env is not None:
            resources.callback(close_all, evaluation_env)
            section = loop.settings.evaluation
            seeds = episode_seeds(loop.seed or 0, section.episodes)
            evaluator = Evaluator(adapted, evaluation_env, seeds, section.deterministic, section.limits)
        session = _open_session(loop, adapted)
        resources.callback(session.close)
        needs_learner = isinstance(loop.strategy, Adaptive)
        player = None
        if loop.settings.evaluation.beside_training and evaluator is not None:
            player = Player(loop.config or {}, list(evaluator.seeds))
            resources.callback(player.close)
        parts = SetUp(adapted, session, evaluator, player, needs_learner=needs_learner, resources=resources.pop_all())
    try:
        _load_history(loop, session)
        if session.is_finished:
            _report_finished(loop, session)
        else:
            _start_attempt(loop, parts, [*notes, *([why_not] if why_not else [])])
    except BaseException:
        parts.close()
        raise
    return parts


def _release(agent: Any) -> None:
    with cleaning_up(f"Releasing {type(agent).__name__}"):
        agent.release()


def _check_strategy(loop: TrainingLoop, agent: Any) -> None:
    if isinstance(loop.strategy, Adaptive):
        missing = [
            name for name in ("capture", "restore", "scale_learning_rate") if not callable(getattr(agent, name, None))
        ]
        if missing:
            raise ConfigurationError(
                f"Strategy 'adaptive' lowers the learning rate and goes back to the best version, for which "
                f"{type(agent).__name__} lacks {', '.join(missing)}. Add them, or use another strategy."
            )


def _prepare_checkpoints(loop: TrainingLoop, agent: Any) -> None:
    """Tell the agent how its environments may take part in a resume."""
    section = loop.settings.checkpoints
    if section.cut_freq is not None and not callable(getattr(agent, "cut_environments", None)):
        raise ConfigurationError(
            f"checkpoints.cut_freq needs an agent that can cut its environments; {type(agent).__name__} has no "
            "cut_environments()."
        )
    _call(agent, "cut_environments", section.cut_freq is not None)
    _call(agent, "allow_probe", section.probe)


def _update_per_episode(loop: TrainingLoop, agent: Any) -> list[str]:
    if not loop.strategy.updates_per_episode:
        return []
    why_not = _call(agent, "update_per_episode")
    return (
        [f"EPISODIC: the agent goes on updating by steps: {why_not}; budget and marks are episodes"] if why_not else []
    )


def _evaluation_env(
    loop: TrainingLoop, agent: Any, env: Any, eval_env: Any
) -> tuple[EvaluationEnvironment | None, str | None]:
    """Build the evaluation environment; where none can be built, say why, or refuse if something needs it."""
    if not loop.settings.training.evaluates:
        return None, None
    section = loop.settings.evaluation
    n_envs = section.parallel
    try:
        with untouched_random_streams():
            if callable(getattr(agent, "make_evaluation_env", None)):
                return agent.make_evaluation_env(eval_env, n_envs), None
            if eval_env is not None and not isinstance(eval_env, str):
                from rltrack.agents.environments import GymEvaluation

                return GymEvaluation([eval_env]), None
            return default_evaluation(env if eval_env is None else eval_env, n_envs), None
    except EvaluationUnavailable as error:
        if loop.settings.training.needs_evaluation or loop.hooks.need_evaluation:
            raise
        return None, f"There will be no evaluations: {error}"


def _open_session(loop: TrainingLoop, agent: Any) -> RunSession:
    described = agent.describe() if callable(getattr(agent, "describe", None)) else {"algorithm": type(agent).__name__}
    settings = loop.settings
    if loop.delivers:
        resolve_destination(settings.tracking.model_dump())  # a bad address is refused before anything starts
    config: Mapping[str, Any] = loop.config or {
        "seed": loop.seed,
        "agent": described,
        **settings.model_dump(mode="json"),
    }
    own_identity = loop.identity or {"seed": loop.seed, "agent": described, **identity(settings)}
    base = f"{described.get('algorithm', 'run')}-{described.get('environment', 'env')}-s{config.get('seed') or 0}"
    session = RunSession.open(
        loop.root,
        loop.name,
        base,
        identity=own_identity,
        config=config,
        agent=described,
        policy=agent.describe_policy() if callable(getattr(agent, "describe_policy", None)) else None,
        checkpoints=settings.checkpoints,
        may_exist=loop.may_resume,
        tracking=loop.tracking,
    )
    if loop.delivers:
        run = session.directory
        write_destination(run, resolve_destination(settings.tracking.model_dump(), _destination_before(run)))
    return session


def _destination_before(run: RunDirectory) -> Destination | None:
    try:
        return read_destination(run)
    except RunDamaged as error:  # this attempt's settings count then
        _logger.warning(f"{error} It is written again, from this attempt's settings.")
        return None


def _load_history(loop: TrainingLoop, session: RunSession) -> None:
    loop.statistics.run = session.directory.name if loop.tracking else None
    loop.metrics = MetricsTracker(session.directory.journal_file)
    if loop.reporter.tensorboard_log_dir is not None:
        session.journal.listen(
            lambda record: (
                loop.reporter.report_metrics(record["values"], record["step"], record["time"])
                if record["kind"] == "metrics"
                else None
            )
        )
    if loop.tracking and loop.reporter.log_file is None:
        loop.reporter.log_file = session.directory.log_file


def _report_finished(loop: TrainingLoop, session: RunSession) -> None:
    status = session.status_before
    assert status is not None, "a finished run stood somehow before"
    loop.was_finished = True
    loop.progress.state = TrainingState(status.state)
    loop.progress.env_steps = status.env_steps
    loop.statistics.take(loop.progress, loop.metrics, status.reason)
    session.finish_copy()


def _start_attempt(loop: TrainingLoop, parts: SetUp, notes: list[str]) -> None:
    session = parts.session
    newest = session.restore() if parts.can_capture else None
    version, exact = None, True
    missing = session.missing_records(None if newest is None else newest[0])
    if newest is not None:
        version, state, problems = newest
        notes += [f"A damaged version was passed over: {problem}" for problem in problems]
        differences = _why_not_exact(parts, version, state)
        _refuse_if_strict(loop, session, [*differences, *(f"its journal lacks {item}" for item in missing)])
        try:
            parts.restore({part: value for part, value in state.items() if part != "loop"})
        except (ResumeMismatch, NotCapturable) as error:
            differences.append(f"the environments begin a new episode: {error}")
            _refuse_if_strict(loop, session, differences)
            parts.restore({part: value for part, value in state.items() if part not in ("loop", "environment")})
        loop.begin_at(parts, state["loop"])
        exact = not differences
        if differences:
            at = f"{version.name} at {version.env_steps:,} env steps"
            notes.append(f"Resumed from {at}, not exactly: {'; '.join(differences)}")
        session.journal.resume_from(version.journal["next_seq"], exact=exact)
        scale = getattr(loop.strategy, "learning_rate_scale", 1.0)
        if scale != 1.0:
            parts.scale_learning_rate(scale)
    else:
        loop.begin_at(parts, None)
        if loop.start_from is not None:
            parts.restore(loop.start_from)
        if session.last_attempt is not None:
            alike = session.last_attempt.get("versions") == package_versions() and bool(_call(parts.agent, "is_seeded"))
            exact = alike and session.last_attempt["exact"]
            notes.append("Begun anew: the attempts before left no checkpoint")
            session.journal.resume_from(1, exact=exact)
    if missing:
        trained = "The training goes on exactly, but its" if exact else "The run's"
        notes.append(
            f"{trained} record has a gap, as the journal lacks {'; '.join(missing)}. Was it restored from a backup, or damaged?"
        )
    if not parts.can_capture:
        notes.append(f"{type(parts.agent).__name__} has no capture() and restore(): there will be no checkpoints")
    choices = dict(_call(parts.agent, "describe_choices") or {})
    session.begin_attempt(
        version,
        exact=exact and not missing,
        seed=loop.seed,
        environments=parts.describe_resume(),
        choices=choices or None,
        missing=missing,
    )
    for what, choice in choices.items():
        loop.reporter.say(f"{what}: {choice['chosen']} ({choice['reason']})")
    damage.accept()  # the notes say it, and the attempt is labelled
    for note in notes:
        _logger.warning(note)
        session.records.warning(note)


def _refuse_if_strict(loop: TrainingLoop, session: RunSession, differences: Sequence[str]) -> None:
    if differences and loop.settings.checkpoints.resume == "strict":
        raise ConfigurationError(
            f"Run {session.directory.name} cannot be resumed exactly: {'; '.join(differences)}. Set checkpoints.resume to "
            "exact to go on all the same; the run is then labelled."
        )


def _why_not_exact(parts: SetUp, version: Version, state: State) -> list[str]:
    """Return what makes a resume from this version differ from a run that was never interrupted."""
    reasons = []
    why_not = parts.why_not_exact()
    if why_not is not None or state.get("environment") is None:
        reasons.append(why_not or "the version holds no environments")
    before = {**version.details.get("versions", {}), **version.details.get("numerics", {})}
    now = {**package_versions(), **parts.numerics()}
    reasons += [
        f"{key} was {before.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if key != "rltrack" and before.get(key) != now.get(key)
    ]
    return reasons


def _call(agent: Any, method: str, *arguments: Any) -> Any:
    found = getattr(agent, method, None)
    return found(*arguments) if callable(found) else None


def _prepares_environments(agent: Any) -> bool:
    """Whether the agent prepares its environment itself."""
    return callable(getattr(agent, "make_evaluation_env", None))


def _plain_env(env: Any) -> Any:
    if env is None:
        raise ConfigurationError("TrainingLoop has no environment. Pass one, or an id such as 'CartPole-v1'.")
    return make_gym_env(env) if isinstance(env, str) else env
