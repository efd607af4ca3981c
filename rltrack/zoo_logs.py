"""What a trained agent's files say about it: a log folder of rl_zoo3, a model of its hub, or a zip of SB3 alone.

The YAML files of rl_zoo3 are read as data: their Python tags stand for ordered mappings and tuples, and nothing is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rltrack.algorithms import find_algorithm
from rltrack.errors import ConfigurationError
from rltrack.zoo_presets import translate

_STATISTICS = ("vecnormalize.pkl", "vec_normalize.pkl")
_OTHER_ZIPS = ("train_eval_metrics.zip", "rl_model_", "best_model.zip")
_ALGORITHMS = {"ppo_lstm": "RecurrentPPO"}


@dataclass(frozen=True, slots=True)
class AgentFiles:
    """The files of a trained agent.

    Attributes:
        model: SB3's zip.
        statistics: VecNormalize's pickle; None without one.
        algorithm: Its name.
        environment: Section ``environment`` of a configuration.
        hyperparameters: As rl_zoo3 had them, in a configuration's form; empty for a zip alone.
    """

    model: Path
    statistics: Path | None
    algorithm: str
    environment: Mapping[str, Any]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


def find_agent_files(path: Path, algorithm: str | None, env_id: str | None, statistics: Path | None) -> AgentFiles:
    """Find out what a file or folder holds.

    Args:
        path: A zip file, or a folder with one.
        algorithm: Its algorithm, where the folder does not say it.
        env_id: Its environment, likewise.
        statistics: VecNormalize's pickle, if it is not next to the model.

    Raises:
        ConfigurationError: If the model, its algorithm or its environment is missing.
    """
    model = _model_in(path) if path.is_dir() else path
    if not model.is_file():
        raise ConfigurationError(
            f"There is no file {model}. Give the zip that model.save() wrote, or a folder with it."
        )
    if statistics is not None and not statistics.is_file():
        raise ConfigurationError(f"There is no file {statistics}. --vecnormalize names what VecNormalize.save() wrote.")
    folders = (model.parent / model.stem, model.parent)  # rl_zoo3 keeps them in a folder of the environment's name
    found = {name: _first(folders, name) for name in ("args.yml", "config.yml", "env_kwargs.yml")}
    arguments, settings, env_kwargs = (_read(file) for file in found.values())
    own_algorithm = _ALGORITHMS.get(str(arguments.get("algo")), arguments.get("algo"))
    algorithm, env_id = algorithm or own_algorithm, env_id or arguments.get("env")
    if not algorithm or not env_id:
        raise ConfigurationError(
            f"{model} does not say which {'algorithm' if not algorithm else 'environment'} it is of. Add --algo and --env, such as "
            "--algo ppo --env CartPole-v1."
        )
    name = find_algorithm(str(algorithm)).name
    translated = translate(name, str(env_id), settings) if settings else {"agent": {}, "environment": {}}
    environment = {**translated["environment"], "id": str(env_id)}
    if env_kwargs:
        environment["kwargs"] = {**environment.get("kwargs", {}), **env_kwargs}
    statistics = statistics or next((file for each in _STATISTICS if (file := _first(folders, each))), None)
    return AgentFiles(model, statistics, name, environment, translated["agent"].get("hyperparameters", {}))


def _model_in(folder: Path) -> Path:
    zips = sorted(folder.glob("*.zip"))
    models = [file for file in zips if not file.name.startswith(_OTHER_ZIPS)] or [
        file for file in zips if file.name == "best_model.zip"
    ]
    if len(models) != 1:
        names = ", ".join(file.name for file in models) or "none"
        raise ConfigurationError(f"{folder} should hold one model's zip file, and holds: {names}. Name the file.")
    return models[0]


def _first(folders: tuple[Path, ...], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


class _Loader(yaml.SafeLoader):
    """Reads the tags that rl_zoo3 writes as lists and mappings."""


def _as_plain(loader: Any, suffix: str, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.SequenceNode) or suffix not in ("tuple", "object/apply:collections.OrderedDict"):
        raise yaml.YAMLError(f"the tag !!python/{suffix[:80]} is not read")
    items = loader.construct_sequence(node, deep=True)
    return items if suffix == "tuple" else dict(items[0]) if items else {}


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _as_plain)


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}.") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} holds no mapping.")
    return found
