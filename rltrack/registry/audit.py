"""Models of an older rltrack that lack a digest or are described wrongly; read from the root's database without MLflow."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rltrack.addresses import file_path, read_only_uri
from rltrack.errors import RltrackError
from rltrack.registry.digest import DIGEST_TAG
from rltrack.runs import Root
from rltrack.tracking.sinks.embedded import database_path

_MOST = 500
"""Number of the newest versions, and runs, that are checked."""

_PATIENCE_SECONDS = 1.0
_VERSIONS = """
    SELECT version.name, version.version, run.value, policy.value, digest.value, stored.artifact_location
    FROM model_versions AS version
    LEFT JOIN logged_models AS stored ON version.source = 'models:/' || stored.model_id
    LEFT JOIN model_version_tags AS run ON (run.name, run.version, run.key) = (version.name, version.version, 'rltrack.run')
    LEFT JOIN model_version_tags AS policy
        ON (policy.name, policy.version, policy.key) = (version.name, version.version, 'rltrack.version')
    LEFT JOIN model_version_tags AS digest ON (digest.name, digest.version, digest.key) = (version.name, version.version, ?)
    WHERE version.current_stage != 'Deleted_Internal' AND run.value IS NOT NULL
    ORDER BY version.creation_time DESC LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class OldModel:
    """A version of a registered model that an older rltrack stored.

    Attributes:
        model: The registered model.
        version: Its version.
        source: ``RUN@version``.
        wrong: What is wrong with it; empty if it only lacks a digest.
    """

    model: str
    version: int
    source: str
    wrong: str


def old_models(root: Root) -> list[OldModel]:
    """Return the versions in the root's own registry that have no digest, by model and version.

    Raises:
        sqlite3.Error: If the database cannot be read.
    """
    database = database_path(root.path)
    if not database.exists():
        return []
    with contextlib.closing(
        sqlite3.connect(read_only_uri(database), uri=True, timeout=_PATIENCE_SECONDS)
    ) as connection:
        rows = connection.execute(_VERSIONS, (DIGEST_TAG, _MOST)).fetchall()
    found = [
        OldModel(model, int(version), f"{run}@{policy}", "; ".join(faults_of(_description_at(location))))
        for model, version, run, policy, digest, location in rows
        if digest is None
    ]
    return sorted(found, key=lambda item: (item.model, item.version))


def runs_described_wrongly(root: Root) -> list[str]:
    """Return the names of the newest runs whose recorded policy description has a fault."""
    with contextlib.suppress(OSError):
        runs = sorted(root.runs(), key=lambda run: run.journal_file.stat().st_mtime, reverse=True)[:_MOST]
        return sorted(run.name for run in runs if any(faults_of(_recorded(run))))
    return []


def faults_of(description: Any) -> Iterator[str]:
    """Yield the faults of a policy's description of format 1."""
    if not isinstance(description, Mapping) or description.get("format") != 1:
        return
    spaces = [_subspaces(description.get(name)) for name in ("observation_space", "input_space", "action_space")]
    if any(list(keys) != sorted(keys) for keys in spaces):
        yield "the keys of its observations are not in alphabetical order, but its own code sorts them"
    normalization = description.get("normalization")
    clip = normalization.get("clip") if isinstance(normalization, Mapping) else None
    if not isinstance(clip, int | float):
        return
    for key, item in spaces[1].items():
        if not isinstance(item, Mapping) or not isinstance(item.get("shape"), list):
            continue
        bounds = (item.get("dtype"), item.get("low"), item.get("high"))
        if len(item["shape"]) == 3 and bounds == ("float32", -clip, clip):  # as VecNormalize overwrites it
            yield f"its signature may ask for float32 where the environment gives the image '{key}' as uint8"


def _subspaces(space: Any) -> Mapping[str, Any]:
    inner = space.get("spaces") if isinstance(space, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _description_at(location: str | None) -> Any:
    """The description of a stored policy, where its files are on this machine."""
    folder = None if location is None else file_path(location)
    if folder is None:
        return None
    try:
        return json.loads((folder / "artifacts" / "policy" / "policy.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _recorded(run: Any) -> Any:
    try:
        return (run.configuration_record() or {}).get("policy")
    except (OSError, ValueError, RltrackError):
        return None
