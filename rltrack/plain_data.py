"""Nested mappings, as YAML holds them: read, changed by dotted keys, merged, flattened, compared. Nothing is evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rltrack.errors import ConfigurationError
from rltrack.secrets import shown


class _Loader(yaml.SafeLoader):
    """YAML without tags. ``3e-4`` is a number, as in JSON and YAML 1.2; a key that stands twice is refused."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                twice = f"the key {shown(key.value)} stands in line {lines[key.value]} already"
                raise yaml.composer.ComposerError(None, None, twice, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes texts such as ``3e-4`` in quotes, so that `_Loader` reads them as texts."""


_NUMBER = ("tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789"))
_Loader.add_implicit_resolver(*_NUMBER)
_Dumper.add_implicit_resolver(*_NUMBER)


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return a nested mapping as YAML, which `read_yaml` reads as it was."""
    text: str = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping from a YAML file, without tags.

    Raises:
        ConfigurationError: If the file is missing, unreadable, not YAML, uses tags, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"No configuration file at {path}. `rltrack init` writes a first one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read configuration {path}: {error}.") from None
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        said = _what_is_wrong(error)
        hint = " YAML tags (!…) are not allowed: configuration is data." if "for the tag" in said else ""
        raise ConfigurationError(f"{path} is not valid YAML: {said}.{hint}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path} holds {type(data).__name__}, not a mapping. See configs/ for examples.")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys, such as ``training.total_timesteps=5000``; values are read as YAML.

    Raises:
        ConfigurationError: If an override is not of the form ``key=value`` or goes through something not a mapping.
    """
    tree: dict[str, Any] = json.loads(json.dumps(data, default=str)) if overrides else dict(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            text = shown(re.split(r"[:\s]", override, maxsplit=1)[0]) if equals == "" else shown(override)
            raise ConfigurationError(f"Override {text} is not of the form key=value, such as seed=1.")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"The value of override '{key}' is not YAML: {_what_is_wrong(error)}.") from None
        node = tree
        *parents, last = key.strip().split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if isinstance(child, bool) or child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                raise ConfigurationError(f"Override '{key}': '{parent}' is {shown(child, parent)}, which has no keys.")
            node = child
        node[last] = value
    return tree


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a nested mapping with dotted keys set; what stands in the way of a key is replaced."""
    data: dict[str, Any] = json.loads(json.dumps(base))
    for key, value in values.items():
        *parents, last = key.split(".")
        node = data
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict):
                child = node[parent] = {}
            node = child
        node[last] = value
    return data


def _what_is_wrong(error: yaml.YAMLError) -> str:
    """What YAML says, and where, without the line itself: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    said = ", ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    return said if mark is None else f"{said}, line {mark.line + 1}, column {mark.column + 1}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping with another laid over it; where both have a mapping, key by key."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            merged[key] = merge(base[key], value)
        else:
            merged[key] = value
    return merged


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return a line for each leaf that differs, as ``training.total_timesteps: 1000 → 2000``."""
    left, right = dict(flatten(ours)), dict(flatten(theirs))
    return [
        f"{key}: {left.get(key, 'not set')!s} → {right.get(key, 'not set')!s}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("agent.hyperparameters.n_steps", 32)`` for each leaf; lists count as leaves."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
