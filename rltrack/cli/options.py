"""The options that define a training, shared by all commands that train."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rltrack.cli.shared import the_root
from rltrack.errors import ConfigurationError

if TYPE_CHECKING:
    from rltrack.config import TrainingConfig

ConfigFile = Annotated[
    Path | None, typer.Argument(help="YAML or JSON file; examples are in configs/.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as training.eval_freq=5000."),
]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What a command was asked to train: a file, options over it, or options alone."""

    config: ConfigFile = None
    overrides: Overrides = None
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name; an existing one is resumed.", show_default=False)
    ] = None
    algo: Annotated[
        str | None, typer.Option("--algo", help="Algorithm, such as ppo, sac or tqc.", show_default=False)
    ] = None
    env: Annotated[
        str | None, typer.Option("--env", help="Environment id, such as CartPole-v1.", show_default=False)
    ] = None
    timesteps: Annotated[int | None, typer.Option("--timesteps", help="Budget in env steps.", show_default=False)] = (
        None
    )
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", show_default=False)] = None
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RUN[@VERSION]", help="Begin a new run with that version's policy.", show_default=False
        ),
    ] = None

    def resolve(self) -> TrainingConfig:
        """Return the configuration, or the settings of the run in `--from`.

        Raises:
            ConfigurationError: If nothing says what to train, or what is said is wrong.
        """
        from rltrack.config import TrainingConfig
        from rltrack.plain_data import read_yaml

        data: dict[str, Any] = {} if self.config is None else read_yaml(self.config)
        if "sweep" in data:
            raise ConfigurationError(
                f"{self.config} has a section 'sweep', so it describes a search: rltrack sweep {self.config}. To train it once, "
                "leave that section out."
            )
        if self.start_from is not None:
            data = _settings_of_origin(self.start_from, data)
        elif self.config is None and not (self.algo and self.env):
            raise ConfigurationError(
                "Nothing to train. Give a configuration file, or --algo and --env: "
                "rltrack train --algo ppo --env CartPole-v1 --timesteps 100000."
            )
        if self.config is None and self.start_from is None:
            data.setdefault("training", {}).setdefault("total_timesteps", 100_000)
        return TrainingConfig.from_mapping(self.over(data), source=str(self.config or "options"))

    def over(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration with what the options say in the place of its own values."""
        from rltrack.plain_data import apply_overrides, with_values

        options = {
            "agent.algorithm": self.algo,
            "environment.id": self.env,
            "training.total_timesteps": self.timesteps,
            "seed": self.seed,
            "name": self.name,
        }
        given = {key: value for key, value in options.items() if value is not None}
        return apply_overrides(with_values(data, given), self.overrides or [])


def takes_training(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a training; it gets them together, as its first argument.

    Args:
        without: Those that the command does not have, or declares itself.
    """
    hints = get_type_hints(TrainingOptions, include_extras=True)
    names = [field.name for field in fields(TrainingOptions) if field.name not in without]
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=hints[name])
        for name in names
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            asked = TrainingOptions(**{name: given.pop(name) for name in names})
            command(asked, **given)

        wrapper.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shared, *own)}
        return wrapper

    return decorate


def _settings_of_origin(start_from: str, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of the run that is begun from where no file gives others; the version is written out, as it may move."""
    from rltrack.runs import RunRef
    from rltrack.training.trainer import config_of

    ref = RunRef.parse(start_from)
    run = the_root().find(ref.run)
    data = given or {**config_of(run).to_mapping(), "name": None}
    return {**data, "start_from": str(RunRef(run.name, run.store().find(ref.version or "last").name))}
