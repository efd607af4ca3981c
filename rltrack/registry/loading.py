"""Loads stored policies: only if their files are unchanged, and never with the code stored in the model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.artifacts import download_artifacts
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.agents.policy_data import CodeUnavailable
from rltrack.errors import ConfigurationError, ModelBroken
from rltrack.named_code import make_current_folder_importable, no_module
from rltrack.registry.digest import DIGEST_TAG, digest_of, remove_compiled_code
from rltrack.registry.models import CONFIG, POLICY
from rltrack.registry.progress_bars import without_progress_bars

_ARTIFACTS = "artifacts"


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A stored policy, ready to act.

    Attributes:
        policy: Acts on raw observations.
        config: The configuration of the run that it comes from, as plain data.
        source: ``RUN@version``.
    """

    policy: ExportedPolicy
    config: Mapping[str, Any]
    source: str


def load_policy(client: MlflowClient, model_id: str, what: str, digest: str | None = None) -> LoadedPolicy:
    """Load a stored policy.

    Args:
        client: On the server or database.
        model_id: MLflow's id of the model.
        what: How to call it in an error.
        digest: The registered version's digest of its files; None for a model stored by a version of rltrack without digests.

    Raises:
        ModelBroken: If its files are missing, changed or unreadable.
        ConfigurationError: If it names code that is not allowed here, or cannot be imported here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _load(_fetch(client, model_id, what, digest, Path(scratch)), what)


def _fetch(client: MlflowClient, model_id: str, what: str, digest: str | None, scratch: Path) -> Path:
    """Return a copy of a model's files that are those that were stored."""
    try:
        # by its location: MLflow resolves `models:/…` at the process-wide address and ignores the client's
        stored = client.get_logged_model(model_id)
        with without_progress_bars():
            folder = Path(
                download_artifacts(
                    artifact_uri=stored.artifact_location, dst_path=str(scratch), tracking_uri=client.tracking_uri
                )
            )
        remove_compiled_code(folder)
        wanted = {value for value in (digest, stored.tags.get(DIGEST_TAG)) if value}
        found = digest_of(folder) if wanted else None
    except Exception as error:
        raise _broken(what, "its files cannot be fetched", error) from error
    if wanted - {found}:
        raise ModelBroken(
            f"{what} is not what was stored: the files in {stored.artifact_location} have the digest {found}; when they were "
            f"stored it was {' and '.join(sorted(wanted))}. A file was changed, added or removed since; nothing of it was "
            "read. Restore its files, promote the run's version again (rltrack promote RUN@VERSION --model NAME), or let another "
            "version be the champion: rltrack rollback NAME --to VERSION."
        )
    return folder


def _load(folder: Path, what: str) -> LoadedPolicy:
    try:
        files = folder / _ARTIFACTS / POLICY
        metadata = Model.load(str(folder)).metadata or {}
        config = yaml.safe_load((files / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, Mapping):
            raise ValueError(f"{CONFIG} holds no mapping")
        source = f"{metadata.get('rltrack.run')}@{metadata.get('rltrack.version')}"
        make_current_folder_importable()  # for classes that RLTRACK_ALLOWED_MODULES names
        return LoadedPolicy(ExportedPolicy.load(files), config, source)
    except CodeUnavailable as error:
        cause = error.__cause__
        missing = f" That is, {no_module(cause.name)}" if isinstance(cause, ModuleNotFoundError) and cause.name else ""
        raise ConfigurationError(
            f"{what} cannot be loaded here: {' '.join(str(error).split())}{missing} Nothing was changed."
        ) from error
    except Exception as error:
        raise _broken(what, "it cannot be loaded", error) from error


def _broken(what: str, how: str, error: Exception) -> ModelBroken:
    return ModelBroken(
        f"{what} is broken, {how}: {' '.join(str(error).split())[:400]}. Nothing was changed. Restore its files, or let another "
        "version be the champion: rltrack rollback NAME --to VERSION."
    )
