"""Two machines carry out a sweep and are killed, each trial is done once, and runs that moved end bit-identical."""

from __future__ import annotations

import pytest

from tests.support.machines import s3_server, swept
from tests.support.servers import postgres_database
from tests.support.stack import Stack


@pytest.mark.nightly
def test_a_sweep_on_two_machines_survives_the_loss_of_either(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    with s3_server() as address, postgres_database() as database, monkeypatch.context() as patch:
        patch.setenv("RLTRACK_SIGNING_KEY", "set again by the scene")  # and so put back afterwards
        swept(Stack(tmp_path, database.replace("postgresql+psycopg", "postgresql")), address, tmp_path, seed=1)
