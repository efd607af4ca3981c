"""What is stored with a run: its configuration, also where a script made agent and environment, and its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.identity import identity
from rltrack.training.named_hooks import describe_hooks

if TYPE_CHECKING:
    from rltrack.agents.base import AgentBase
    from rltrack.training.plan import TrainingPlan


@dataclass(frozen=True, slots=True)
class RunDescription:
    """A run, described.

    Attributes:
        agent: The agent's description.
        config: The resolved configuration; it builds agent and environment, except where `notes` says why not.
        identities: What must be equal for a run to be resumed, any of them; a new run gets the first.
        notes: What cannot be done with the run outside its script, with the remedy.
    """

    agent: Mapping[str, Any]
    config: Mapping[str, Any]
    identities: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()


def describe_run(plan: TrainingPlan, agent: AgentBase) -> RunDescription:
    """Describe a run before it is opened; the agent is bound."""
    described = agent.describe()
    settings = plan.settings
    by_script = {"seed": plan.seed, "agent": described, **identity(settings)}
    sections = {"seed": plan.seed, **settings.model_dump(mode="json")}
    if plan.config is not None or plan.identity is not None:
        config = plan.config or {**sections, "agent": described}
        return RunDescription(described, config, (plan.identity or by_script, *plan.accepted_identities))
    found = agent.describe_configuration()
    if found is None:
        return RunDescription(described, {**sections, "agent": described}, (by_script,))
    seed = plan.seed if plan.seed is not None else (described.get("hyperparameters") or {}).get("seed")
    sections |= {"seed": seed, "agent": found.agent, "environment": found.environment}
    missing = list(found.missing)
    if found.is_complete:
        try:
            hooks, unknown = describe_hooks([*plan.hooks.hooks, *plan.callbacks])
            only = [*found.script_only, *unknown]
            given = {**sections, "seed": seed or 0, "hooks": hooks, "script_only": only}
            whole = TrainingConfig.from_mapping(given, source="the configuration of this script")
        except ConfigurationError as error:  # such as a password among the environment's arguments
            missing.append(" ".join(str(error).split()))
        else:
            # without hooks: a script may add harmless ones when it resumes, and refuses others by their state
            own_identity = identity(whole.model_copy(update={"hooks": []}))
            notes = (
                (f"Only this script can train this run further: {'; '.join(only)}.",) if only and plan.tracking else ()
            )
            return RunDescription(described, whole.to_mapping(), (own_identity, by_script), notes)
    note = f"This run cannot be evaluated, promoted or resumed outside this script: it lacks {'; '.join(missing)}."
    return RunDescription(described, {**sections, "missing": missing}, (by_script,), (note,) if plan.tracking else ())
