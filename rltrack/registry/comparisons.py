"""Comparisons in MLflow: logged once for the same runs, with a link to MLflow's own page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from mlflow.tracking import MlflowClient

from rltrack.addresses import file_uri, same_address, without_account
from rltrack.errors import RegistryUnavailable
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.destination import Destination, read_destination, without_password
from rltrack.tracking.pages import served_page
from rltrack.tracking.sinks.answers import explain
from rltrack.tracking.sinks.embedded import artifact_folder, database_uri, ensure_database

EXPERIMENT = "comparisons"
_TAG = "rltrack.comparison"


def compare_link(runs: Sequence[RunDirectory]) -> str | None:
    """Return the address of MLflow's page that compares these runs; None if they are not in one MLflow, or no page is served."""
    states = [found.mlflow.state for run in runs if (found := read_bookmark(run)) is not None]
    states = [state for state in states if "run_id" in state]
    if len(states) != len(runs) or not states:
        return None
    uri = str(states[0]["tracking_uri"])
    if not all(same_address(uri, str(state["tracking_uri"])) for state in states):
        return None
    page = without_account(uri) if uri.startswith("http") else served_page(Root(runs[0].root))
    if page is None:
        return None
    ids = quote(json.dumps([state["run_id"] for state in states]))
    experiments = quote(json.dumps(sorted({str(state["experiment_id"]) for state in states})))
    return f"{page.rstrip('/')}/#/compare-runs?runs={ids}&experiments={experiments}"


def log_comparison(runs: Sequence[RunDirectory], files: Sequence[Path], description: str) -> str:
    """Log a comparison's files to MLflow, in the experiment `comparisons`; another comparison of the same runs replaces them.

    Returns:
        MLflow's id of the run that holds them.

    Raises:
        RegistryUnavailable: If MLflow does not take them.
    """
    root = Root(runs[0].root)
    uri = (read_destination(runs[0]) or Destination()).tracking_uri
    names = sorted(run.name for run in runs)
    key = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    try:
        client = MlflowClient(uri or ensure_database(root.path))
        found = client.get_experiment_by_name(EXPERIMENT)
        location = file_uri(artifact_folder(root.path, EXPERIMENT)) if uri is None else None
        experiment_id = (
            found.experiment_id if found else client.create_experiment(EXPERIMENT, artifact_location=location)
        )
        known = client.search_runs([experiment_id], f"tags.`{_TAG}` = '{key}'", max_results=1)
        if known:
            run_id = known[0].info.run_id
        else:
            title = ", ".join(names)[:200]
            run_id = client.create_run(
                experiment_id, tags={_TAG: key, "rltrack.runs": title}, run_name=title
            ).info.run_id
        client.set_tag(run_id, "mlflow.note.content", description)
        for file in files:
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
        return str(run_id)
    except Exception as error:
        raise RegistryUnavailable(
            f"MLflow does not take the comparison: {explain(error, without_password(uri or database_uri(root.path)))[0]}"
        ) from error
