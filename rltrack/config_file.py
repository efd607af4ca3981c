"""The configuration as a run keeps it: in ``config.yaml``, with a checksum, and again in each version's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rltrack.checkpoints.store import CheckpointStore
from rltrack.checkpoints.version import Version
from rltrack.files import replace_text
from rltrack.plain_data import to_yaml
from rltrack.sealed import is_sealed, seal_text, unseal_text


def write_config_file(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration, with a checksum in the first line."""
    replace_text(path, seal_text(to_yaml(config)))


def read_config_file(path: Path, store: CheckpointStore) -> dict[str, Any]:
    """Read what `write_config_file` wrote, or an older release without a checksum.

    Args:
        path: The file.
        store: The run's versions, which record whether a checksum was written.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no YAML, or was changed since it was written.
    """
    text = path.read_text(encoding="utf-8")
    if is_sealed(text):
        text = unseal_text(text)
    elif newest_description(store) is not None:  # the rltrack that wrote the version writes a checksum here, too
        raise ValueError("its first line, with the checksum, is not as it was written")
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(what_is_wrong(error)) from None
    if not isinstance(data, dict):
        raise ValueError("it holds no mapping")
    return data


def newest_description(store: CheckpointStore) -> tuple[Version, dict[str, Any]] | None:
    """Return the newest version that holds the run's configuration, with it; None without any, as of older releases."""
    for version in reversed(store.versions()):
        found = version.details.get("configuration")
        if isinstance(found, dict) and isinstance(found.get("config"), dict):
            return version, found
    return None


def what_is_wrong(error: Exception) -> str:
    """Say what is wrong, without the file's text: it may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        return f"it is no YAML: {error.problem}{at}"
    if isinstance(error, UnicodeDecodeError | yaml.YAMLError):
        return "it is no text in UTF-8"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return str(error)
