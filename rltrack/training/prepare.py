"""From a plan to a training that is ready to run: everything that is decided before the first iteration."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from rltrack.agents import as_agent
from rltrack.agents.environments import default_evaluation, make_gym_env
from rltrack.agents.protocol import EvaluationEnvironment
from rltrack.agents.random_state import untouched_random_streams
from rltrack.agents.separate_environments import check_separate
from rltrack.cleanup import cleaning_up, close_all
from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, EvaluationUnavailable, RunDamaged
from rltrack.evaluation.episodes import Evaluator, episode_seeds
from rltrack.evaluation.pending import Player
from rltrack.tracking.destination import Destination, read_destination, resolve_destination, write_destination
from rltrack.tracking.metrics import MetricsTracker
from rltrack.training.attempt import begin_attempt
from rltrack.training.live import LiveTraining
from rltrack.training.progress import TrainingState
from rltrack.training.run_description import RunDescription, describe_run
from rltrack.training.session import RunSession
from rltrack.training.strategies import retention_of

if TYPE_CHECKING:
    from rltrack.agents import AgentBase
    from rltrack.runs import RunDirectory
    from rltrack.training.plan import TrainingPlan

_logger = logging.getLogger("rltrack")


def prepare(plan: TrainingPlan) -> LiveTraining:
    """Bind the agent, build the evaluation, open the run, and restore its newest version if it has one.

    All checks come before the run's folder is made. A run that is finished already is only read.

    Returns:
        The complete training. Close it.

    Raises:
        ConfigurationError: If agent, environment and settings do not fit together; nothing was started.
        NameTaken, RunBusy, RootNotWritable: As `RunSession.open`.
    """
    if plan.agent is None:
        raise ConfigurationError("TrainingLoop has no agent. Pass one to TrainingLoop(agent, env) or run(agent, env).")
    agent = as_agent(plan.agent)
    _check_strategy(plan, agent)
    _check_player(plan)
    if agent.is_capturable:
        plan.hooks.check_states()
    resources = contextlib.ExitStack()
    try:
        notes = _bind(plan, agent, resources)
        evaluator, why_not = _evaluator(plan, agent, resources)
        described = describe_run(plan, agent)
        session = _open_session(plan, agent, described)
        resources.callback(session.close)
        _keep_destination(plan, session)
        player = _player(plan, evaluator, resources)
        _show_history(plan, session)
        loop = None
        if session.is_finished:
            _report_finished(plan, session)
        else:
            loop = begin_attempt(plan, agent, session, [*notes, *described.notes, *([why_not] if why_not else [])])
        return LiveTraining(plan, agent, session, evaluator, player, loop, resources)
    except BaseException:
        resources.close()
        raise


def _check_strategy(plan: TrainingPlan, agent: AgentBase) -> None:
    strategy = plan.strategy
    missing = [name for name in strategy.needs_of_agent if not agent.implements(name)]
    if missing:
        raise ConfigurationError(
            f"Strategy '{strategy.kind.value}' needs {', '.join(strategy.needs_of_agent)} of the agent, and {agent.class_name} "
            f"lacks {', '.join(missing)}. Add them, or use another strategy."
        )


def _check_player(plan: TrainingPlan) -> None:
    """The process that evaluates beside training builds agent and environment again: a configuration must say how."""
    if not (plan.settings.training.evaluates and plan.settings.evaluation.beside_training):
        return
    why_not = "a script made them, and TrainingLoop has no config="
    if plan.config is not None:
        try:
            TrainingConfig.from_mapping(plan.config, source="config=")
            return
        except ConfigurationError as error:
            why_not = str(error)
    raise ConfigurationError(
        "evaluation.beside_training builds agent and environment a second time, in a process of its own, from a configuration: "
        f"{why_not}. Train a configuration (rltrack train FILE, or rltrack.Trainer), or set beside_training to False."
    )


def _bind(plan: TrainingPlan, agent: AgentBase, resources: contextlib.ExitStack) -> list[str]:
    """Prepare the agent to train in its environment; return the warnings."""
    section = plan.settings.checkpoints
    agent.set_log_interval(plan.settings.tracking.log_interval)
    agent.cut_environments(section.cut_freq is not None)
    agent.allow_probe(section.probe)
    agent.take_make_env(plan.make_env)
    agent.take_callbacks(plan.callbacks, plan.settings.training.total_timesteps)
    resources.callback(_release, agent)
    agent.bind(plan.env if agent.implements("make_evaluation_env") else _plain_env(plan.env), plan.seed)
    if not plan.strategy.updates_per_episode:
        return []
    why_not = agent.update_per_episode()
    return [f"EPISODIC: the agent still updates by steps: {why_not}; budget and marks are episodes"] if why_not else []


def _release(agent: AgentBase) -> None:
    with cleaning_up(f"Releasing {agent.class_name}"):
        agent.release()


def _plain_env(env: Any) -> Any:
    if env is None:
        raise ConfigurationError("TrainingLoop has no environment. Pass one, or an id such as 'CartPole-v1'.")
    return make_gym_env(env) if isinstance(env, str) else env


def _evaluator(
    plan: TrainingPlan, agent: AgentBase, resources: contextlib.ExitStack
) -> tuple[Evaluator | None, str | None]:
    """Return what judges the policy; where no environment for it can be built, say why, or refuse if something needs it."""
    if not plan.settings.training.evaluates:
        return None, None
    section = plan.settings.evaluation
    try:
        with untouched_random_streams():
            env = _evaluation_env(plan, agent, section.parallel)
    except EvaluationUnavailable as error:
        if plan.settings.training.needs_evaluation or plan.hooks.need_evaluation:
            raise
        return None, f"There will be no evaluations: {error}"
    resources.callback(close_all, env)
    seeds = episode_seeds(plan.seed or 0, section.episodes)
    return Evaluator(agent, env, seeds, section.deterministic, section.limits), None


def _evaluation_env(plan: TrainingPlan, agent: AgentBase, n_envs: int) -> EvaluationEnvironment:
    check_separate(plan.eval_env, plan.env, getattr(agent, "env", None))
    env = agent.make_evaluation_env(plan.eval_env, n_envs)
    if env is not None:
        return env
    if plan.eval_env is not None and not isinstance(plan.eval_env, str):
        from rltrack.agents.environments import GymEvaluation

        return GymEvaluation([plan.eval_env])
    return default_evaluation(plan.env if plan.eval_env is None else plan.eval_env, n_envs)


def _player(plan: TrainingPlan, evaluator: Evaluator | None, resources: contextlib.ExitStack) -> Player | None:
    """Return what evaluates in a background process; None to evaluate between iterations."""
    if evaluator is None or not plan.settings.evaluation.beside_training:
        return None
    player = Player(plan.config or {}, list(evaluator.seeds))
    resources.callback(player.close)
    return player


def _open_session(plan: TrainingPlan, agent: AgentBase, described: RunDescription) -> RunSession:
    if plan.delivers:
        resolve_destination(plan.settings.tracking.model_dump())  # a bad address is refused before anything starts
    summary = described.agent
    base = f"{summary.get('algorithm', 'run')}-{summary.get('environment', 'env')}-s{described.config.get('seed') or 0}"
    return RunSession.open(
        plan.root,
        plan.name,
        base,
        identities=described.identities,
        config=described.config,
        agent=summary,
        policy=agent.describe_policy(),
        retention=retention_of(plan.settings.checkpoints, plan.settings.training.strategy),
        store=plan.settings.checkpoints.store,
        may_exist=plan.resume,
        tracking=plan.tracking,
    )


def _keep_destination(plan: TrainingPlan, session: RunSession) -> None:
    """Write down where the run's records go, for the process that delivers them."""
    if plan.delivers:
        run = session.directory
        write_destination(run, resolve_destination(plan.settings.tracking.model_dump(), _destination_before(run)))


def _destination_before(run: RunDirectory) -> Destination | None:
    try:
        return read_destination(run)
    except RunDamaged as error:  # this attempt's settings count then
        _logger.warning(f"{error} It is written again, from this attempt's settings.")
        return None


def _show_history(plan: TrainingPlan, session: RunSession) -> None:
    """Have statistics and reporter follow the run's records."""
    plan.statistics.run = session.directory.name if plan.tracking else None
    plan.statistics.history = MetricsTracker(session.directory.journal_file)
    reporter = plan.reporter
    if reporter.tensorboard_log_dir is not None:
        session.journal.listen(
            lambda record: (
                reporter.report_metrics(record["values"], record["step"], record["time"])
                if record["kind"] == "metrics"
                else None
            )
        )
    if plan.tracking and reporter.log_file is None:
        reporter.log_file = session.directory.log_file


def _report_finished(plan: TrainingPlan, session: RunSession) -> None:
    status = session.status_before
    assert status is not None, "a finished run stood somehow before"
    plan.progress.state = TrainingState(status.state)
    plan.progress.env_steps = status.env_steps
    plan.statistics.take(plan.progress, plan.statistics.history, status.reason)
    session.finish_copy()
