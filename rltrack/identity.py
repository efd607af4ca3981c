"""A run's identity: the part of its configuration that changes bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def identity(settings: BaseModel) -> dict[str, Any]:
    """Return the part of the configuration that changes bits, as plain data without operational keys."""
    kept: dict[str, Any] = {}
    for key, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("operational"):
            continue
        value = getattr(settings, key)
        later = extra.get("later") if isinstance(extra, dict) else None
        if later and (value in later if isinstance(later, list) else value == field.default):
            continue  # came later than the first runs, whose identity it must not change
        kept[key] = identity(value) if isinstance(value, BaseModel) else value
    return kept


def measured_environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine what an episode's return counts; only where all are equal can returns be compared.

    How a policy sees the environment (normalisation, stacked frames) and how often it is built are not among them.

    Args:
        config: A configuration as plain data, or its identity.
    """
    environment, evaluation = (config.get(section) or {} for section in ("environment", "evaluation"))
    named = ({item: {}} if isinstance(item, str) else item for item in environment.get("wrappers") or ())
    wrappers = [{path.replace(":", "."): dict(arguments or {})} for item in named for path, arguments in item.items()]
    return {
        "environment.id": environment.get("id"),
        "environment.kwargs": environment.get("kwargs") or {},
        "environment.wrappers": wrappers,
        "environment.wrappers_inside_monitor": bool(wrappers and environment.get("wrappers_inside_monitor")),
        "evaluation.max_steps_per_episode": evaluation.get("max_steps_per_episode"),
    }


def identity_hash(identity_data: Mapping[str, Any]) -> str:
    """Return a SHA-256 of an identity, independent of the order of keys."""
    return hashlib.sha256(json.dumps(identity_data, sort_keys=True, default=str).encode()).hexdigest()
