"""One Prefect server for all tests, in whichever of pytest's processes they run: that is what a root's server is for."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory, shared_folder):
    """A server of rltrack's own; everything in this process talks to it. Its address."""
    from rltrack.flows.client import prefect_server

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
        with prefect_server(shared_folder / "prefect-server") as api:
            yield api


@pytest.fixture
def client(prefect_api):
    """A client of that server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def quick_retries(monkeypatch):
    """Retries without the wait."""
    from rltrack.flows import train
    from rltrack.flows.retries import RETRIES

    for task in (train.set_up, train.train_chunk, train.evaluate, train.checkpoint, train.finish):
        monkeypatch.setattr(task, "retry_delay_seconds", [0.0] * RETRIES)
