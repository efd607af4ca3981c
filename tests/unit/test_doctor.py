"""What `rltrack doctor` finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rltrack import doctor
from rltrack.agents.environments import make_gym_env
from rltrack.tracking.sinks.embedded import ensure_database


def found(root, what):
    return [finding for finding in doctor.examine(root) if finding.what == what]


def test_all_is_well_here(tmp_path):
    assert [finding for finding in doctor.examine(tmp_path) if finding.good is False] == []


def test_a_root_that_everybody_may_write(tmp_path):
    tmp_path.chmod(0o777)
    assert "chmod o-w" in found(tmp_path, "permissions")[0].found


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert found(tmp_path / "file" / "root", "root")[0].good is False


@pytest.mark.slow
def test_a_root_that_was_moved(tmp_path):
    import mlflow

    uri = ensure_database(tmp_path / "old")
    mlflow.MlflowClient(uri).create_experiment("e", artifact_location=(tmp_path / "old" / "artifacts" / "e").as_uri())
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert "rltrack relocate" in found(tmp_path / "new", "root")[1].found


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=3e6))
    assert "3.0 MB are free" in found(tmp_path, "disk")[0].found


def test_a_network_file_system(tmp_path, monkeypatch):
    partition = SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")
    monkeypatch.setattr(doctor.psutil, "disk_partitions", lambda all: [partition])
    assert found(tmp_path, "file system")[0].good is False


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", "does not answer"),
        ("MLFLOW_TRACKING_URI", "./mlruns", "keeps no runs"),
        ("PREFECT_API_URL", "http://127.0.0.1:9/api", "does not answer"),
    ],
)
def test_servers_that_cannot_be_used(tmp_path, monkeypatch, variable, value, word):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv(variable, value)
    with temporary_settings({PREFECT_API_URL: value} if variable == "PREFECT_API_URL" else {}):  # it was read before
        finding = found(tmp_path, variable)[0]
    assert finding.good is False
    assert word in finding.found


@pytest.mark.slow
def test_a_server_that_a_profile_of_prefects_names(tmp_path):
    """In a process of its own: Prefect reads its profile once."""
    (tmp_path / "profiles.toml").write_text(
        'active = "away"\n[profiles.away]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_API")}
    done = subprocess.run(
        [sys.executable, "-m", "rltrack", "--root", str(tmp_path / "mlruns"), "doctor"],
        env={**environment, "PREFECT_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "127.0.0.1:9 does not answer" in done.stdout
    assert "prefect config unset PREFECT_API_URL" in done.stdout


def test_another_python_and_another_command(tmp_path, monkeypatch):
    other = tmp_path / "rltrack"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert "two installations" in found(tmp_path, "command")[0].found
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
    assert "3.11 to 3.13" in found(tmp_path, "python")[0].found


def test_versions_that_do_not_work_together(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "2.1.0" if package == "sqlalchemy" else "1.0")
    assert [finding.good for finding in found(tmp_path, "sqlalchemy")] == [True, False]
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    assert "pip install" in found(tmp_path, "torch")[0].found


@pytest.mark.slow
def test_the_environments_that_it_names_are_there(tmp_path):
    """An extra that is said to be there can be used."""
    names = {"extra box2d": "LunarLander-v3", "extra mujoco": "HalfCheetah-v5", "extra atari": "ALE/Pong-v5"}
    for what, env_id in names.items():
        if found(tmp_path, what)[0].good:
            make_gym_env(env_id).close()


def test_a_release_that_costs_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "6.0.0" if package == "chardet" else "1.0")
    assert "chardet<6" in found(tmp_path, "chardet")[0].found
    assert found(tmp_path, "chardet")[0].good is None
