"""The registered models as plain data, for tables and programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.registered import CHALLENGER, CHAMPION, Registered


def model_rows(registry: ModelRegistry) -> list[dict[str, Any]]:
    """Return one mapping for each model: champion, challenger, aliases, versions, history."""
    rows = []
    for name in registry.names():
        versions = {item.version: item for item in registry.versions(name)}
        aliases = registry.aliases(name)
        rows.append(
            {
                "name": name,
                "champion": _row(versions.get(aliases.get(CHAMPION, 0))),
                "challenger": _row(versions.get(aliases.get(CHALLENGER, 0))),
                "aliases": aliases,
                "versions": [_row(item) for item in versions.values()],
                "history": [dataclasses.asdict(event) for event in registry.history(name)],
            }
        )
    return rows


def _row(item: Registered | None) -> dict[str, Any] | None:
    if item is None:
        return None
    return {
        "version": item.version,
        "source": item.source,
        "mean_return": item.tags.get("rltrack.mean_return"),
        "interval": item.tags.get("rltrack.interval"),
        "level": None if item.decision is None else item.decision.level,
        "outcome": item.tags.get("rltrack.outcome"),
        "reason": None if item.decision is None else item.decision.reason,
        "model_id": item.model_id,
        "run_id": item.run_id,
    }
