"""Every test runs in a root of its own, on one torch thread, and never reaches outside the machine."""

from __future__ import annotations

import os

import pytest

os.environ.update(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_COLOR": "1",
    }
)
os.environ.pop("FORCE_COLOR", None)
MLFLOW_SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch, request):
    """Runs land in a temporary root; only tests that ask for the fixture `delivery` start delivering processes."""
    for variable in MLFLOW_SETTINGS:  # MLflow's own functions set them for their processes
        os.environ.pop(variable, None)
    monkeypatch.setenv("RLTRACK_ROOT", str(tmp_path / "mlruns"))
    if "delivery" not in request.fixturenames:
        monkeypatch.setattr("rltrack.tracking.delivery.deliver", lambda run: None)
        monkeypatch.setattr("rltrack.tracking.delivery.deliver_left_behind", lambda root: 0)
    return tmp_path / "mlruns"


@pytest.fixture
def delivery():
    """Let runs be delivered to MLflow and TensorBoard, as they are outside of tests."""
