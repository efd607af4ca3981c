"""The search space of a sweep: the ``sweep`` section of a configuration file.

A parameter is named by its key (``agent.hyperparameters.learning_rate``); a name without a section is a hyperparameter.
Sampler and pruner are Optuna's; rl_zoo3's search spaces are loaded from that package.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from rltrack.config import Section, TrainingConfig, expand_preset
from rltrack.errors import ConfigurationError
from rltrack.plain_data import apply_overrides, read_yaml, with_values
from rltrack.validation import validate_section

if TYPE_CHECKING:
    import optuna

_SECTIONS = ("agent", "environment", "training")
_HYPERPARAMETERS = "agent.hyperparameters."

SamplerName = Literal["tpe", "random", "grid", "qmc", "cmaes", "gp"]
PrunerName = Literal["none", "median", "halving", "hyperband"]


class Choice(Section):
    """One of several values, which may be lists and mappings."""

    choice: list[Any] = Field(min_length=1)


class Int(Section):
    """A whole number, both ends included."""

    ends: tuple[int, int] = Field(alias="int")
    log: bool = False
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_range(self.ends, self.log, stepped=self.step != 1)
        return self


class Float(Section):
    """A number, both ends included."""

    ends: tuple[float, float] = Field(alias="float")
    log: bool = False
    step: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_range(self.ends, self.log, stepped=self.step is not None)
        return self


def _check_range(ends: tuple[float, float], log: bool, *, stepped: bool) -> None:
    low, high = ends
    if low > high:
        raise ValueError(f"the range is [{low}, {high}]; write the lower end first")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must start above 0, not at {low}")
    if log and stepped:
        raise ValueError("a logarithmic range has no step; leave out one of the two")


class SweepSection(Section):
    """How to search.

    Parameters, space, seeds and objective are fixed once a sweep has started; number of trials, sampler and pruner may
    change when it is resumed.
    """

    parameters: dict[str, Choice | Int | Float] = Field(
        default_factory=dict,
        description="By key: {choice: [...]}, {int: [low, high]} or {float: [low, high], log: true}.",
    )
    space: Literal["zoo"] | None = Field(
        None, description="'zoo': rl_zoo3's search space of the algorithm, in addition to the parameters."
    )
    trials: int | None = Field(None, ge=1, le=1_000_000, description="Omitted: 20; for a grid, every combination.")
    sampler: SamplerName | dict[SamplerName, dict[str, Any]] = "tpe"
    pruner: PrunerName | dict[PrunerName, dict[str, Any]] = "median"
    seeds: int = Field(1, ge=1, le=1000, description="Runs of each trial, with the seeds seed, seed + 1, …")
    objective: Literal["final", "best"] = Field(
        "final", description="Mean return of the last evaluation, or of the best one; over seeds, their mean."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the sampler.")

    @model_validator(mode="after")
    def _searches_something(self) -> Self:
        if not self.parameters and self.space is None:
            raise ValueError("there is nothing to search; give sweep.parameters, or space: zoo")
        for what in (self.sampler, self.pruner):
            if isinstance(what, dict) and len(what) != 1:
                raise ValueError(
                    f"name one, with its arguments: {{{next(iter(what), 'tpe')}: {{…}}}}; found {list(what)}"
                )
        if self.sampler_name == "grid":
            if self.space is not None:
                raise ValueError("a grid needs choices; rl_zoo3's space has ranges. Use another sampler")
            for name, parameter in self.parameters.items():
                if isinstance(parameter, Float) and parameter.step is None:
                    raise ValueError(f"a grid needs a finite number of values; give '{name}' a step, or choices")
        return self

    @property
    def sampler_name(self) -> str:
        """The sampler without its arguments."""
        return named(self.sampler)[0]

    @property
    def number_of_trials(self) -> int:
        """The number of trials."""
        if self.sampler_name == "grid":
            size = math.prod(len(grid_values(parameter)) for parameter in self.parameters.values())
            return size if self.trials is None else min(size, self.trials)
        return self.trials or 20

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination, as Optuna's parameters."""
        names = list(self.parameters)
        values = [grid_values(self.parameters[name]) for name in names]
        return [dict(zip(names, combination, strict=True)) for combination in itertools.product(*values)]


def named(what: str | Mapping[Any, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of ``name`` or ``{name: {argument: value}}``."""
    if isinstance(what, str):
        return what, {}
    name, arguments = next(iter(what.items()))
    return name, dict(arguments)


def grid_values(parameter: Choice | Int | Float) -> list[Any]:
    """Return the values that a grid visits."""
    if isinstance(parameter, Choice):
        return list(_texts(parameter.choice))
    if isinstance(parameter, Int):
        return list(range(parameter.ends[0], parameter.ends[1] + 1, parameter.step))
    low, high = parameter.ends
    assert parameter.step is not None, "checked by the validator"
    return [low + index * parameter.step for index in range(int((high - low) / parameter.step + 1e-9) + 1)]


def read_sweep(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], SweepSection]:
    """Read a configuration file with a section ``sweep``.

    Args:
        path: YAML or JSON.
        overrides: ``key=value`` for any key of the file, such as ``sweep.trials=40``.

    Returns:
        The training, as a mapping with presets expanded, and the section.

    Raises:
        ConfigurationError: If the file is no valid configuration, or has no such section.
    """
    data = read_yaml(path)
    if not isinstance(data.get("sweep"), Mapping):
        raise ConfigurationError(
            f"{path} has no section 'sweep' with the search space, such as sweep: {{parameters: {{learning_rate: "
            "{float: [1e-5, 1e-2], log: true}}, trials: 20}. configs/cartpole_sweep.yaml is an example."
        )
    data = apply_overrides(data, overrides)
    section = data.pop("sweep")
    return expand_preset(data), validate_section(SweepSection, section, f"{path}: sweep")


def full_key(name: str) -> str:
    """Return the configuration's key for a parameter's name.

    Raises:
        ConfigurationError: If that key cannot be searched.
    """
    first = name.partition(".")[0]
    if first in _SECTIONS and "." in name:
        return name
    if first in ("evaluation", "checkpoints", "tracking", "seed", "name", "start_from", *_SECTIONS):
        raise ConfigurationError(
            f"sweep.parameters: '{name}' cannot be searched. Name keys of agent, environment or training, such as "
            "agent.hyperparameters.learning_rate; for several seeds set sweep.seeds."
        )
    return f"{_HYPERPARAMETERS}{name}"


def check_space(base: Mapping[str, Any], section: SweepSection) -> None:
    """Check, before anything starts, that both ends of each range, and each choice, are valid in the configuration.

    Raises:
        ConfigurationError: With the parameter and the value.
        MissingExtra: If a package is missing.
    """
    from rltrack.agents.factory import check

    corners: dict[str, Any] = {}
    for name, parameter in section.parameters.items():
        key = full_key(name)
        values: Sequence[Any] = parameter.choice if isinstance(parameter, Choice) else parameter.ends
        corners[key] = values[0]
        for value in values:
            try:
                TrainingConfig.from_mapping(with_values(base, {key: value}), source="sweep")
            except ConfigurationError as error:
                raise ConfigurationError(f"sweep.parameters: {name} = {value!r}: {error}") from None
    config = TrainingConfig.from_mapping(with_values(base, corners), source="sweep")
    if section.space == "zoo":
        zoo_sampler(config.agent.algorithm)
    check(config)
    if not (config.training.evaluates or config.training.needs_evaluation):
        raise ConfigurationError("A sweep compares evaluations; set training.eval_freq.")


def suggest(trial: optuna.Trial, base: Mapping[str, Any], section: SweepSection) -> dict[str, Any]:
    """Return the values of a trial by configuration key; a second call returns the same."""
    values: dict[str, Any] = {}
    if section.space == "zoo":
        values.update(_suggest_zoo(trial, base))
    for name, parameter in section.parameters.items():
        values[full_key(name)] = _suggest(trial, name, parameter)
    return values


def _suggest(trial: optuna.Trial, name: str, parameter: Choice | Int | Float) -> Any:
    if isinstance(parameter, Choice):
        texts = _texts(parameter.choice)
        return texts[trial.suggest_categorical(name, list(texts))]
    if isinstance(parameter, Int):
        return trial.suggest_int(name, *parameter.ends, log=parameter.log, step=parameter.step)
    return trial.suggest_float(name, *parameter.ends, log=parameter.log, step=parameter.step)


def _texts(choices: Sequence[Any]) -> dict[Any, Any]:
    """Map Optuna's categories, which are plain values, to the choices; lists and mappings are named by their JSON."""
    return {
        item if item is None or isinstance(item, str | int | float | bool) else json.dumps(item): item
        for item in choices
    }


def zoo_sampler(algorithm: str) -> Any:
    """Return rl_zoo3's function that samples an algorithm's hyperparameters.

    Only that one module is loaded: the package itself changes Gymnasium when it is imported.

    Raises:
        MissingExtra: If rl_zoo3 is not installed.
        ConfigurationError: If it has no space for the algorithm.
    """
    from rltrack.algorithms import find_algorithm
    from rltrack.zoo_presets import zoo_folder, zoo_stem

    name = find_algorithm(algorithm).name
    known = _zoo_samplers(zoo_folder("space: zoo") / "hyperparams_opt.py")
    if zoo_stem(name) not in known:
        raise ConfigurationError(f"rl_zoo3 has no search space for {name}. It has: {', '.join(sorted(known))}.")
    return known[zoo_stem(name)]


@functools.cache
def _zoo_samplers(file: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("rltrack._zoo_spaces", file)
    assert spec is not None, "the file is named .py"
    assert spec.loader is not None, "likewise"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.HYPERPARAMS_SAMPLER)


def _suggest_zoo(trial: optuna.Trial, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return rl_zoo3's values, with classes and noise objects in the notation of a configuration."""
    n_envs = int((base.get("environment") or {}).get("n_envs") or 1)
    additional = {"using_her_replay_buffer": False, "her_kwargs": {}}
    sampled = zoo_sampler(str(base["agent"]["algorithm"]))(trial, 1, n_envs, additional)
    return {f"{_HYPERPARAMETERS}{key}": _plain(value) for key, value in sampled.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if inspect.isclass(value):
        return value.__name__
    if hasattr(value, "_sigma"):  # one of SB3's noises
        kind = "ornstein-uhlenbeck" if "Ornstein" in type(value).__name__ else "normal"
        return {kind: float(value._sigma[0])}
    return value
