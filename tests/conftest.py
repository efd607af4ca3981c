"""Every test runs in a root of its own, on one torch thread, and never reaches outside the machine."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

import pytest

os.environ.update(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_COLOR": "1",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",  # two seconds by default, for which each test of logs waits
        "RLTRACK_VIDEO": "off",  # ten seconds of CPU for each run that is delivered
    }
)
os.environ.pop("FORCE_COLOR", None)
MLFLOW_SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


LONG = ("test_stack", "test_server", "test_serving", "test_matrix", "test_train_flow", "test_deploy", "test_pruning_registries",
        "test_kills", "test_tracking_kills", "test_outages", "test_remote")  # fmt: skip
"""Modules with the longest tests, the longest first."""


def pytest_collection_modifyitems(items):
    """Modules with long tests come first, so that no process waits for another's last one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))

    def place(item):
        name = item.path.stem
        return (LONG.index(name) if name in LONG else len(LONG)), -slow[item.path]

    items.sort(key=place)


@pytest.fixture(autouse=True)
def signals_as_before():
    """A test leaves no handler and no mask behind: processes that later tests start would inherit ignored and blocked signals."""
    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in heard], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    assert ([signal.getsignal(number) for number in heard], signal.pthread_sigmask(signal.SIG_BLOCK, [])) == before


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch, request, empty_database):
    """Runs land in a temporary root; only tests that ask for the fixture `delivery` start delivering processes, and only those that
    ask for `plots` draw when they deliver in their own process: that is half of its time."""
    for variable in MLFLOW_SETTINGS:  # MLflow's own functions set them for their processes
        os.environ.pop(variable, None)
    monkeypatch.setenv("RLTRACK_ROOT", str(tmp_path / "mlruns"))
    monkeypatch.setattr("rltrack.tracking.sinks.embedded._create", empty_database)
    if "plots" not in request.fixturenames:
        monkeypatch.setattr("rltrack.tracking.report.RunReport.draw", lambda report: report.plots)
    if "delivery" not in request.fixturenames:
        from rltrack.tracking.delivery import NoDelivery

        monkeypatch.setattr("rltrack.tracking.delivery.Delivery", lambda run: NoDelivery())
        monkeypatch.setattr("rltrack.tracking.delivery.deliver_left_behind", lambda root: 0)
    return tmp_path / "mlruns"


@pytest.fixture
def plots():
    """Let what is delivered in this process have plots, as outside of tests."""


@pytest.fixture
def delivery():
    """Let runs be delivered to MLflow and TensorBoard, as they are outside of tests."""


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all of pytest's processes have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def empty_database(shared_folder):
    """Makes a root's MLflow database, as a copy."""
    from tests.support.databases import SHARED, copy_for_root

    os.environ[SHARED] = str(shared_folder)
    return copy_for_root


@pytest.fixture(scope="session")
def forks(shared_folder):
    """Commands without the wait for their imports, for tests of what a command does and not of its process."""
    from tests.support.forks import Forks

    forks = Forks(shared_folder)
    yield forks
    forks.close()


@pytest.fixture
def forked(forks, monkeypatch):
    """Every Python process that this test starts, and those that they start, are forks."""
    monkeypatch.setattr(sys, "executable", forks.python)
    return forks
