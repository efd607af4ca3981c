"""Policies as MLflow models, stored from a run's version (`loading` reads them back).

A stored model is data and the files of code that read it: no pickle is run when it is loaded. Storing can be repeated: a model
is found by a tag that names run and version. Its digest is a tag too, and is checked when rltrack loads it; rltrack never
runs the code in it.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.tracking import MlflowClient
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from rltrack.agents import POLICY_PARTS, exported_policy, policy_data, policy_inputs, policy_spaces
from rltrack.agents.exported_policy import space_of, tensors_of, write_policy
from rltrack.agents.policy_data import FORMAT, check_description
from rltrack.checkpoints import Version
from rltrack.errors import PolicyNotStorable
from rltrack.registry.digest import DIGEST_TAG, digest_of
from rltrack.registry.progress_bars import without_progress_bars
from rltrack.runs import RunDirectory
from rltrack.tracking.metrics import INTERVAL_KEYS, evaluation_metrics

POLICY_TAG, ROLE_TAG = "rltrack.policy", "rltrack.role"
CANDIDATE = "candidate"
CONFIG = "config.yaml"
_CODE = Path(__file__).with_name("served_policy.py")
_READERS = [str(Path(str(module.__file__))) for module in (exported_policy, policy_data, policy_inputs, policy_spaces)]
POLICY = "policy"
"""Folder of a policy's files among a model's artifacts."""
_REQUIREMENTS = ("torch", "stable-baselines3", "gymnasium", "numpy", "safetensors")


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A run's version as something that can be stored.

    Attributes:
        run: The run.
        version: The version.
        description: How its policy is built.
    """

    run: RunDirectory
    version: Version
    description: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The tag value by which a model of it is found."""
        return f"{self.run.run_id}/{self.version.name}"

    @property
    def label(self) -> str:
        """``RUN@v12``."""
        return f"{self.run.name}@{self.version.name}"


def policy_of(run: RunDirectory, selector: str | int) -> StoredPolicy:
    """Return a version's policy, if it can be stored.

    Raises:
        CheckpointNotFound: If there is no such version.
        PolicyNotStorable: If it cannot be stored as a model, with the reason and the remedy.
    """
    return described_as(
        StoredPolicy(run, run.store().find(selector), {}), (run.configuration_record() or {}).get("policy")
    )


def described_as(policy: StoredPolicy, description: Mapping[str, Any] | None) -> StoredPolicy:
    """Return a policy with this description, if it can be stored.

    Raises:
        PolicyNotStorable: If it cannot be stored as a model, with the reason and the remedy.
    """
    run = policy.run
    if description is None:
        raise PolicyNotStorable(
            f"Run {run.name} does not say how its policy is built: its agent has no describe_policy(), or it was trained by an "
            "older rltrack. SB3's and sb3-contrib's agents have it; train again, or keep its checkpoints."
        )
    if "reason" in description:
        raise PolicyNotStorable(f"The policy of run {run.name} cannot be stored as a model. {description['reason']}")
    return replace(policy, description=as_current(description))


def is_described_today(run: RunDirectory) -> bool:
    """Whether the run recorded a compared description of its policy in the current format."""
    description = (run.configuration_record() or {}).get("policy") or {}
    return bool(description.get("format") == FORMAT)


def as_current(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description in the current format; one of format 1 keeps the order of its keys."""
    if description.get("format") != 1:
        return dict(description)
    return {**_with_pairs(description), "format": FORMAT}


def _with_pairs(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    if tree.get("type") == "Dict" and isinstance(tree.get("spaces"), Mapping):
        return {**tree, "spaces": [[key, _with_pairs(item)] for key, item in tree["spaces"].items()]}
    return {key: _with_pairs(item) for key, item in tree.items()}


def write_model(policy: StoredPolicy, folder: Path, model: Model | None = None) -> None:
    """Write a policy as an MLflow model into a new folder.

    Raises:
        PolicyNotStorable: If its description is not of the form that a reader accepts.
    """
    state = policy.run.store().read(policy.version, POLICY_PARTS)
    weights, normalization = state["policy"]["policy"], state.get("normalization")
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / POLICY
        files.mkdir()
        try:
            check_description(policy.description, tensors_of(policy.description, weights, normalization))
            signature = signature_of(policy.description)
        except (ValueError, KeyError) as error:
            raise PolicyNotStorable(
                f"The policy of run {policy.run.name} is not described as a reader expects it: {error} Train again with this "
                "rltrack; the run's versions are as they were."
            ) from error
        write_policy(files, policy.description, weights, normalization)
        shutil.copy(policy.run.config_file, files / CONFIG)
        with warnings.catch_warnings(), without_progress_bars():
            warnings.simplefilter("ignore")  # MLflow recommends an input example; making one would load torch
            save_model(
                str(folder),
                python_model=str(_CODE),
                artifacts={POLICY: str(files)},
                code_paths=_READERS,
                signature=signature,
                pip_requirements=_requirements(policy.description),
                metadata={"rltrack.run": policy.run.name, "rltrack.version": policy.version.name},
                mlflow_model=model or Model(),
            )


def signature_of(description: Mapping[str, Any]) -> ModelSignature:
    """Return a policy's inputs and outputs, from its spaces; the first axis is always the batch."""
    inputs: list[Any] = _specs(space_of(description["input_space"]))
    action = _spec(space_of(description["action_space"]), None)
    outputs: list[Any] = [action]
    if description["masked"] or description["recurrent"]:
        inputs = [TensorSpec(s.type, s.shape, f"observation.{s.name}" if s.name else "observation") for s in inputs]
    if description["masked"]:
        inputs.append(TensorSpec(np.dtype(bool), (-1, -1), "action_masks"))
    if description["recurrent"]:
        state = TensorSpec(np.dtype(np.float32), (-1, 2, -1, -1), "state")
        inputs += [TensorSpec(np.dtype(bool), (-1,), "episode_start"), state]
        outputs = [TensorSpec(action.type, action.shape, "action"), state]
    params = ParamSchema([ParamSpec("deterministic", "boolean", True), ParamSpec("clip", "boolean", False)])
    return ModelSignature(Schema(inputs), Schema(outputs), params)


def _specs(space: Any) -> list[TensorSpec]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return [_spec(item, key) for key, item in space.spaces.items()]
    return [_spec(space, None)]


def _spec(space: Any, name: str | None) -> TensorSpec:
    return TensorSpec(np.dtype(space.dtype), (-1, *space.shape), name)


def _requirements(description: Mapping[str, Any]) -> list[str]:
    contrib = ("sb3-contrib",) if "sb3_contrib" in json.dumps(description) else ()
    # a local build's suffix, such as +cpu, is on no index
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in (*_REQUIREMENTS, *contrib)}
    return [f"mlflow=={mlflow.__version__}", *(f"{name}=={version}" for name, version in installed.items())]


def store_policy(client: MlflowClient, policy: StoredPolicy, *, run_id: str, role: str) -> LoggedModel:
    """Store a version's policy as a model of its MLflow run, with its evaluation; an existing model is returned.

    Args:
        client: On the server or database.
        policy: What to store.
        run_id: MLflow's id of the run.
        role: ``best`` or ``final`` policy of a run, or ``candidate`` of a promotion.
    """
    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    found = find_stored(client, experiment_id, policy.key)
    if found is not None:
        if role != CANDIDATE and found.tags.get(ROLE_TAG) == CANDIDATE:  # stored for a promotion while it was trained
            client.set_logged_model_tags(found.model_id, {ROLE_TAG: role})
        return found
    name = f"{policy.run.name}-{role}".replace(".", "-")
    created = client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        tags={
            POLICY_TAG: policy.key,
            "rltrack.run": policy.run.name,
            "rltrack.version": policy.version.name,
            "rltrack.env_steps": str(policy.version.env_steps),
            ROLE_TAG: role,
        },
        params={key: value for key, value in run.data.params.items() if not key.startswith(("version.", "machine."))},
        model_type="policy",
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            write_model(policy, folder, Model(run_id=run_id, model_id=created.model_id))
            client.set_logged_model_tags(created.model_id, {DIGEST_TAG: digest_of(folder)})
            with without_progress_bars():
                client.log_model_artifacts(created.model_id, str(folder))
        client.finalize_logged_model(created.model_id, "READY")
    except BaseException:
        client.delete_logged_model(created.model_id)
        raise
    client.log_outputs(run_id, [LoggedModelOutput(created.model_id, policy.version.env_steps)])
    _link_evaluation(client, policy, run_id, created.model_id)
    ready: LoggedModel = client.get_logged_model(created.model_id)
    return ready


def find_stored(client: MlflowClient, experiment_id: str, key: str) -> LoggedModel | None:
    """Return a policy's complete stored model with a digest; incomplete ones are deleted."""
    ready = None
    for model in client.search_logged_models([experiment_id], f"tags.`{POLICY_TAG}` = '{key}'"):
        if model.status.value == "READY" and ready is None and DIGEST_TAG in model.tags:
            ready = model
        elif model.status.value != "READY":
            client.delete_logged_model(model.model_id)
    return ready


def _link_evaluation(client: MlflowClient, policy: StoredPolicy, run_id: str, model_id: str) -> None:
    """Link the evaluation at the policy's env steps to the model; its rows equal the run's own, so none is duplicated."""
    record = policy.run.history().evaluation_at(policy.version.env_steps)
    if record is None:
        return
    rows = [
        Metric(key, float(value), int(record["time"] * 1000), int(record["step"]), model_id=model_id, run_id=run_id)
        for key, value in evaluation_metrics(record).items()
        if key not in INTERVAL_KEYS
    ]
    client.log_batch(run_id, metrics=rows)
