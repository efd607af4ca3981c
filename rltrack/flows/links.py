"""The addresses of a run's page in MLflow, and of a flow run's page in Prefect."""

from __future__ import annotations

import os

from rltrack.addresses import without_account
from rltrack.runs import RunDirectory
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.destination import MLFLOW_PAGE


def mlflow_link(run: RunDirectory) -> str | None:
    """Return the address of the run's page in MLflow; None without a server."""
    bookmark = read_bookmark(run)
    state = {} if bookmark is None else bookmark.mlflow.state
    if "run_id" not in state:
        return None
    uri = without_account(str(state["tracking_uri"]))
    page = uri if uri.startswith("http") else os.environ.get(MLFLOW_PAGE)
    return f"{page.rstrip('/')}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}" if page else None


def flow_run_page(api: str, flow_run_id: str) -> str:
    """Return the address of a flow run's page."""
    return f"{without_account(api).removesuffix('/api')}/runs/flow-run/{flow_run_id}"
