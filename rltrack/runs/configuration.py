"""A run's stored configuration as a typed value, also where an older release or a script wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from rltrack.config import CheckpointsSection, Section, TrackingSection, TrainingConfig
from rltrack.errors import ConfigurationError
from rltrack.runs.ref import RunRef

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True, slots=True)
class StoredConfiguration:
    """What a run's ``config.yaml`` says.

    The file of a run whose agent a script built describes no agent and environment that can be built; the other settings are
    there all the same. What is unknown or not allowed in them, as a newer or older release may have written it, has its
    default.

    Attributes:
        values: Everything, as it is stored.
        source: Where it is from, for errors.
        name: The run's name.
        seed: The seed; None if unknown.
        start_from: The version that the run began with; None for none.
        checkpoints: Which versions are kept, and where.
        tracking: Where numbers go.
        is_buildable: Whether it says how agent and environment are built.
        missing: What it lacks for that, where a script made them.
    """

    values: Mapping[str, Any]
    source: str
    name: str | None
    seed: int | None
    start_from: RunRef | None
    checkpoints: CheckpointsSection
    tracking: TrackingSection
    is_buildable: bool
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "configuration") -> StoredConfiguration:
        """Read what a run stored."""
        name, seed, start, environment, missing = (
            values.get(key) for key in ("name", "seed", "start_from", "environment", "missing")
        )
        missing = tuple(map(str, missing)) if isinstance(missing, list) else ()
        return cls(
            values,
            source,
            name if isinstance(name, str) else None,
            seed if type(seed) is int else None,
            _origin(start),
            _section(CheckpointsSection, values.get("checkpoints")),
            _section(TrackingSection, values.get("tracking")),
            isinstance(environment, Mapping) and "id" in environment and not missing,
            missing,
        )

    @property
    def strategy(self) -> object:
        """The name of the training strategy, as it is stored."""
        section = self.values.get("training")
        return section.get("strategy") if isinstance(section, Mapping) else None

    def to_training(self) -> TrainingConfig:
        """Return it as what a training is built from.

        Raises:
            ConfigurationError: If a script made its agent in a way that cannot be written down, or with one line for each thing
                that is wrong.
        """
        if self.is_buildable:
            return TrainingConfig.from_mapping(self.values, source=self.source)
        if not self.missing:
            raise ConfigurationError(
                f"Run {self.name} was trained by a script with an agent of its own; its configuration does not say how to build "
                "it. Resume it in that script, with TrainingLoop(agent, env, name=…, resume=True)."
            )
        raise ConfigurationError(
            f"Run {self.name} cannot be built outside its script. It lacks {'; '.join(self.missing)}. For an environment: rltrack "
            f"eval {self.name} --env package.module:Name, once."
        )

    def with_environment(self, env_id: str) -> TrainingConfig:
        """Return it with the environment that the script did not name.

        Args:
            env_id: ``package.module:Name`` or an id of Gymnasium, for one environment.

        Raises:
            ConfigurationError: If it names another one, or lacks other things.
        """
        section = self.values.get("environment")
        if self.is_buildable and isinstance(section, Mapping):
            if section["id"] == env_id:
                return self.to_training()
            raise ConfigurationError(
                f"Run {self.name} was trained in {section['id']}, and --env is {env_id}. Leave --env out."
            )
        if not isinstance(section, Mapping):
            return self.to_training()  # raises, and says why
        given = {key: value for key, value in self.values.items() if key != "missing"}
        kept = ("n_envs", "normalize", "frame_stack", "vectorization", "info_keywords")
        environment = {key: value for key, value in section.items() if key in kept} | {"id": env_id}
        whole = {**given, "seed": self.seed or 0, "environment": environment}
        return TrainingConfig.from_mapping(whole, source=self.source)


def _origin(text: object) -> RunRef | None:
    try:
        return RunRef.parse(text) if isinstance(text, str) else None
    except ConfigurationError:
        return None


def _section(kind: type[SectionT], data: object) -> SectionT:
    """Return a section; what is unknown or not allowed in it has its default."""
    values = (
        {key: value for key, value in data.items() if key in kind.model_fields} if isinstance(data, Mapping) else {}
    )
    while True:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
            if not wrong & values.keys():
                return kind()
            values = {key: value for key, value in values.items() if key not in wrong}
