"""An attempt at a run begins: from the run's newest version, from a version of another run, or from nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rltrack import damage
from rltrack.checkpoints.kept import what_is_gone
from rltrack.errors import ConfigurationError, NotCapturable, ResumeMismatch
from rltrack.hash_seed import NOTICE, RANDOM, hash_seed
from rltrack.provenance import package_versions
from rltrack.training.records import record_warning

_logger = logging.getLogger("rltrack")

if TYPE_CHECKING:
    from rltrack.agents import AgentBase
    from rltrack.agents.protocol import State
    from rltrack.checkpoints import Version
    from rltrack.training.plan import TrainingPlan
    from rltrack.training.session import RunSession


def begin_attempt(
    plan: TrainingPlan, agent: AgentBase, session: RunSession, notes: list[str]
) -> Mapping[str, Any] | None:
    """Restore the run's newest version if it has one, and record that this attempt begins.

    Args:
        plan: Of the training; its progress, strategy and hooks are restored from the version.
        agent: Bound to its environment.
        session: The open run.
        notes: Warnings from the preparation.

    Returns:
        What the version holds besides the agent; None where training starts from zero.

    Raises:
        ConfigurationError: If only an exact resume is wanted, and it would not be one.
        CheckpointCorrupt: If there are versions, and none verifies.
    """
    notes += what_is_gone(session.store.folder)
    newest = session.restore() if agent.is_capturable else None
    version, exact, loop = None, True, None
    missing = session.missing_records(None if newest is None else newest[0])
    if newest is not None:
        version, state, problems = newest
        notes += [f"A damaged version was skipped: {problem}" for problem in problems]
        differences = _differences(agent, version, state)
        _refuse_if_strict(plan, session, [*differences, *(f"its journal lacks {item}" for item in missing)])
        try:
            agent.restore({part: value for part, value in state.items() if part != "loop"})
        except (ResumeMismatch, NotCapturable) as error:
            differences.append(f"the environments begin a new episode: {error}")
            _refuse_if_strict(plan, session, differences)
            agent.restore({part: value for part, value in state.items() if part not in ("loop", "environment")})
        loop = state["loop"]
        plan.progress.load_state_dict(loop["progress"])
        plan.strategy.load_state_dict(loop["strategy"])
        plan.hooks.load_state_dict(loop["hooks"])
        session.resume_differences = tuple(differences)
        exact = not differences
        if differences:
            at = f"{version.name} at {version.env_steps:,} env steps"
            notes.append(f"Resumed from {at}, not exactly: {'; '.join(differences)}")
        session.journal.resume_from(version.journal["next_seq"], version.env_steps, exact=exact)
        scale = plan.strategy.learning_rate_scale
        if scale != 1.0:
            agent.scale_learning_rate(scale)
    else:
        if plan.start_from is not None:
            agent.restore(plan.start_from)
        if session.last_attempt is not None:
            begins_alike = _begins_alike(agent, session.last_attempt)
            exact = (
                session.last_attempt.get("versions") == package_versions()
                and agent.is_seeded()
                and begins_alike
                and session.last_attempt["exact"]
            )
            note = "Started again from zero: earlier attempts left no checkpoint"
            notes.append(
                note if begins_alike else f"{note}, and the environments do not provably begin as they did then"
            )
            session.journal.resume_from(1, 0, exact=exact)
    if missing:
        trained = "The training is resumed exactly, but its" if exact else "The run's"
        notes.append(
            f"{trained} record has a gap, as the journal lacks {'; '.join(missing)}. Was it restored from a backup, or damaged?"
        )
    if not agent.is_capturable:
        notes.append(f"{agent.class_name} has no capture() and restore(): there will be no checkpoints")
    agent.accelerate()
    choices = dict(agent.describe_choices())
    session.begin_attempt(
        version,
        exact=exact and not missing,
        seed=plan.seed,
        environments=agent.describe_resume(),
        choices=choices or None,
        missing=missing,
    )
    for what, choice in choices.items():
        plan.reporter.say(f"{what}: {choice['chosen']} ({choice['reason']})")
    if hash_seed() == RANDOM and agent.why_not_exact() is None:
        _logger.warning(NOTICE)
    damage.accept()  # the notes say it, and the attempt is labelled
    for note in notes:
        record_warning(session.records, note)
    return loop


def _begins_alike(agent: AgentBase, before: Mapping[str, Any]) -> bool:
    """Whether the environments begin as in the attempt before; a generator of their own may have no seed."""
    now = agent.describe_resume()
    if now is None or "start" not in now:
        return True
    return now["start"] is not None and now["start"] == (before.get("environments") or {}).get("start")


def _refuse_if_strict(plan: TrainingPlan, session: RunSession, differences: Sequence[str]) -> None:
    if differences and plan.settings.checkpoints.resume == "strict":
        raise ConfigurationError(
            f"Run {session.directory.name} cannot be resumed exactly: {'; '.join(differences)}. Set checkpoints.resume to "
            "exact to resume all the same; the run is then labelled."
        )


def _differences(agent: AgentBase, version: Version, state: State) -> list[str]:
    """Return what makes a resume from this version differ from a run that was never interrupted."""
    reasons = []
    why_not = agent.why_not_exact() or state.get("not_captured")
    if why_not is not None or state.get("environment") is None:
        reasons.append(why_not or "the version holds no environments")
    before = {"hash_seed": RANDOM, **version.details.get("versions", {}), **version.details.get("numerics", {})}
    now = {**package_versions(), **agent.numerics(), "hash_seed": hash_seed()}
    reasons += [
        f"{key} was {before.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if key != "rltrack"
        and before.get(key) != now.get(key)
        and (key, before.get(key)) != ("hash_seed", RANDOM)  # then the run is labelled already
    ]
    return reasons
