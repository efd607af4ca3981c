"""What the configuration of a model in a registry may name: somebody else may have registered it.

Environments are built from it, and names of modules run code. So it may name only what is harmless, what the reader allows
(RLTRACK_ALLOWED_MODULES), and what a configuration of the reader's own names too: that of the run under this root from which the
model comes, or the challenger's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rltrack.agents.policy_data import ALLOWED_MODULES
from rltrack.errors import ConfigurationError, RltrackError
from rltrack.registry.loading import LoadedPolicy
from rltrack.runs import Root

_REGISTERING = ("gymnasium", "ale_py", "rltrack.benchmarks.environments")
"""Modules that may stand before the colon of an environment's id."""

_GYMNASIUM = (
    "AddRenderObservation AddWhiteNoise AtariPreprocessing Autoreset ClipAction ClipReward DelayObservation DiscretizeAction "
    "DiscretizeObservation DtypeObservation FilterObservation FlattenObservation FrameStackObservation GrayscaleObservation "
    "MaxAndSkipObservation NormalizeObservation NormalizeReward ObstructView OrderEnforcing PassiveEnvChecker "
    "RecordEpisodeStatistics RepeatAction RescaleAction RescaleObservation ReshapeObservation ResizeObservation StickyAction "
    "TimeAwareObservation TimeLimit"
)
_ATARI = "AtariWrapper ClipRewardEnv EpisodicLifeEnv FireResetEnv MaxAndSkipEnv NoopResetEnv StickyActionEnv WarpFrame"
WRAPPERS = frozenset(
    [f"gymnasium.wrappers.{name}" for name in _GYMNASIUM.split()]
    + [f"stable_baselines3.common.atari_wrappers.{name}" for name in _ATARI.split()]
    + ["sb3_contrib.common.wrappers.TimeFeatureWrapper"]
)
"""Wrappers that every configuration may name: they write no files and call nothing that they are given."""

_SHARED = ("gymnasium", "stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "numpy")
"""Packages of which not every name is harmless: there a wrapper is known only with the same arguments."""


def refuse_unknown_modules(stored: LoadedPolicy, root: Root, known: Sequence[Mapping[str, Any]] = ()) -> None:
    """Refuse a configuration from a registry that names code or secrets which nobody here asked for.

    Args:
        stored: The policy, with the configuration that was stored beside it.
        root: Where the run that it comes from may lie.
        known: Further configurations of one's own.

    Raises:
        ConfigurationError: With what it names, and how to allow it.
    """
    own = [*known, *_own_configuration(root, stored)]
    named, asked_for = set(_named(stored.config)), {item for config in own for item in _named(config)}
    allowed = [item.strip() for item in os.environ.get(ALLOWED_MODULES, "").split(",") if item.strip()]
    for kind, name, detail in sorted(named - asked_for):
        if kind == "variable":
            raise ConfigurationError(
                f"The configuration of {stored.source} in the registry takes the value of the environment variable {name}, which "
                "no configuration of your own does. Nothing was built. Train its environment under this root once, or promote "
                "a run whose configuration names that variable."
            )
        if not any(name == item or name.startswith(f"{item}.") for item in allowed) and not _is_harmless(kind, name):
            shown = f"{name} {detail}".strip()[:200]
            raise ConfigurationError(
                f"The configuration of {stored.source} in the registry names {shown}, whose code would run here, and no "
                f"configuration of your own names it. Nothing was built. If you trust it, set "
                f"{ALLOWED_MODULES}={name if kind == 'module' else name.rpartition('.')[0]} and try again."
            )


def _is_harmless(kind: str, name: str) -> bool:
    return name in WRAPPERS if kind == "wrapper" else name in _REGISTERING


def _own_configuration(root: Root, stored: LoadedPolicy) -> list[Mapping[str, Any]]:
    """The configuration of the run that the model says it comes from, if it lies under this root."""
    try:
        config = root.find(stored.source.partition("@")[0]).read_config()
    except (RltrackError, OSError, ValueError):
        return []
    return [config] if isinstance(config, Mapping) else []


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a configuration names: kind, name, and the arguments where they matter."""
    section = config.get("environment")
    if not isinstance(section, Mapping):
        return
    module, colon, _ = str(section.get("id", "")).rpartition(":")
    if colon:
        yield "module", module, ""
    for item in section.get("wrappers") or ():
        for path, arguments in ({item: {}} if isinstance(item, str) else dict(item)).items():
            name = str(path).replace(":", ".")
            is_shared = name.partition(".")[0] in _SHARED and name not in WRAPPERS
            yield "wrapper", name, json.dumps(arguments or {}, sort_keys=True, default=str) if is_shared else ""
    for value in (section.get("kwargs") or {}).values():
        yield from _variables(value)


def _variables(value: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, Mapping):
        if set(value) == {"env"}:
            yield "variable", str(value["env"]), ""
        for item in value.values():
            yield from _variables(item)
    elif isinstance(value, list):
        for item in value:
            yield from _variables(item)
