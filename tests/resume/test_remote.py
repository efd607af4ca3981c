"""A run begun on one machine goes on from the remote store on another, whose disk is empty."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rltrack.checkpoints.mirror import Mirror
from rltrack.checkpoints.remote import RemoteRun
from rltrack.checkpoints.unsigned import Claim
from rltrack.config import TrainingConfig
from rltrack.console.deliveries import delivery_lines, delivery_state
from rltrack.errors import CheckpointCorrupt, ConfigurationError, NameTaken, RunNotFound, RunTakenOver
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.shipper import EXIT_DELIVERED, EXIT_NOT_DELIVERED, left_behind, ship_run
from rltrack.training.fetching import fetch
from rltrack.training.hooks import TrainingHook
from rltrack.training.trainer import Trainer
from rltrack.training.verify import comparable, first_difference, records_of

pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[2]
KEY = "a key for tests only"


@pytest.fixture(scope="module")
def s3():
    """An S3 server on loopback."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow)])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", KEY)
    if request.param == "file":
        return f"file://{tmp_path}/store"
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_ENDPOINT_URL", request.getfixturevalue("s3")),
        ("AWS_DEFAULT_REGION", "us-east-1"), ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"runs-{time.time_ns()}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/prefix"


FILE_EACH_TIME = pytest.mark.parametrize(
    "store", ["file", pytest.param("s3", marks=pytest.mark.nightly)], indirect=True
)
S3_EACH_TIME = pytest.mark.parametrize("store", [pytest.param("file", marks=pytest.mark.nightly), "s3"], indirect=True)


def config(store=None, **more):
    return TrainingConfig.from_mapping(
        {
            "name": "roaming",
            "seed": 3,
            "agent": {
                "algorithm": "DQN",
                "hyperparameters": {"learning_starts": 50, "buffer_size": 400, "batch_size": 16, "train_freq": 4,
                                    "policy_kwargs": {"net_arch": [16]}},
            },
            "environment": {"id": "CartPole-v1"},
            "training": {"total_timesteps": 1200, "checkpoint_freq": 100, "eval_freq": 300},
            "evaluation": {"episodes": 2},
            "checkpoints": {"store": store},
            **more,
        }
    )  # fmt: skip


def stop_at(trainer, env_steps):
    class Stop:
        def on_iteration_end(self, progress, stats):
            if progress.env_steps >= env_steps:
                trainer.loop.stop()

    trainer.loop.add_hook(Stop())


def everything(root):
    run = Root(root).find("roaming")
    versions = run.store()
    return {**comparable(versions.read(versions.find("last"))), "journal": records_of(run)}


@pytest.mark.slow
@S3_EACH_TIME
def test_another_machine_goes_on(store, tmp_path):
    Trainer(config(), root=tmp_path / "whole").train()
    first = Trainer(config(store), root=tmp_path / "a")
    stop_at(first, 450)
    first.train()
    second = Trainer(config(store), root=tmp_path / "b")
    statistics = second.train()
    assert statistics.env_steps == 1200
    attempts = [r for r in read_journal(Root(tmp_path / "b").find("roaming").journal_file) if r["kind"] == "attempt"]
    assert [(record["number"], record["exact"]) for record in attempts] == [(1, True), (2, True)]
    assert attempts[1]["env_steps"] >= 450
    assert first_difference(everything(tmp_path / "whole"), everything(tmp_path / "b"))[1] is None
    remote = RemoteRun(store, "roaming", KEY.encode())
    assert remote.journal_bytes() == Root(tmp_path / "b").find("roaming").journal_file.stat().st_size

    third = Trainer(config(store), root=tmp_path / "a")  # the first machine comes back: what it has is stale
    assert third.train().env_steps == 1200
    assert third.loop.was_finished
    assert (tmp_path / "a" / "runs" / "roaming" / "stale-000001" / "journal.jsonl").exists()


SCRIPT = """
import sys
from tests.resume.test_remote import config
from rltrack.training.trainer import Trainer
trainer = Trainer(config(sys.argv[1]), root=sys.argv[2])
trainer.loop.delivers = False
trainer.train()
"""


@pytest.mark.slow
@FILE_EACH_TIME
def test_a_killed_machine_is_replaced_again_and_again(store, tmp_path, forked):
    Trainer(config(), root=tmp_path / "whole").train()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    for number in range(1, 30):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, store, str(tmp_path / f"m{number}")], env=environment)
        remote = RemoteRun(store, "roaming", KEY.encode())
        seen = len(remote.versions())
        while process.poll() is None and {name for name, _ in remote.versions()} and len(remote.claims()) < number:
            time.sleep(0.01)
        newest = [name for name, _ in remote.versions()][-1:]
        while process.poll() is None and [name for name, _ in remote.versions()][-1:] == newest:
            time.sleep(0.01)
        if number <= 3:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        assert seen >= 0
    assert number > 1
    assert first_difference(everything(tmp_path / "whole"), everything(tmp_path / f"m{number}"))[1] is None


@pytest.mark.slow
@FILE_EACH_TIME
def test_a_trainer_thought_dead_cannot_commit(store, tmp_path):
    first = Trainer(config(store), root=tmp_path / "a")

    class TakeOver:
        """Another machine begins when the first has come to 500 env steps, and ends before that one goes on."""

        def on_iteration_end(self, progress, stats):
            if progress.env_steps == 500:
                remote = RemoteRun(store, "roaming", KEY.encode())
                while not remote.versions():
                    time.sleep(0.01)
                assert Trainer(config(store), root=tmp_path / "b").train().env_steps == 1200

    first.loop.add_hook(TakeOver())
    with pytest.raises(RunTakenOver, match=r"attempt 2 on .*, this is attempt 1"):
        first.train()
    attempts = [manifest["attempt"] for _, manifest in RemoteRun(store, "roaming", KEY.encode()).versions()]
    assert attempts[-1] == 2
    assert first.loop.progress.env_steps < 1200 or first.loop.progress.state.value == "failed"


@pytest.mark.slow
@FILE_EACH_TIME
def test_a_trainer_thought_dead_writes_while_another_begins(store, tmp_path, monkeypatch):
    first = Trainer(config(store), root=tmp_path / "a")
    stop_at(first, 300)
    first.train()
    download = RemoteRun.download

    def download_and_write(remote, folder, notify):
        size = download(remote, folder, notify)
        remote._write(f"journal/000001-{size:012d}.jsonl", b'{"of":"the first trainer"}\n')
        return size

    monkeypatch.setattr(RemoteRun, "download", download_and_write)
    second = Trainer(config(store), root=tmp_path / "b")
    assert second.train().env_steps == 1200
    journal = (tmp_path / "b" / "runs" / "roaming" / "journal.jsonl").read_bytes()
    assert RemoteRun(store, "roaming", KEY.encode())._journal() == journal


def test_what_an_older_attempt_adds_does_not_count(store):
    remote = RemoteRun(store, "roaming", KEY.encode())
    remote.claim(Claim(1, "x", 0, 0, "one"))
    remote._write("journal/000001-000000000000.jsonl", b"from one\n")
    remote.claim(Claim(2, "x", 0, 4, "two"))
    remote._write("journal/000002-000000000004.jsonl", b" two\n")
    remote._write("journal/000001-000000000009.jsonl", b"one again\n")
    assert remote._journal() == b"from two\n"
    with pytest.raises(RunTakenOver, match="same moment"):
        remote.claim(Claim(2, "x", 0, 4, "three"))
    with pytest.raises(RunTakenOver, match="attempt 2 on two"):
        remote.check_is_newest(1)


@pytest.mark.slow
def test_nothing_unsigned_is_read(store, tmp_path, monkeypatch):
    first = Trainer(config(store), root=tmp_path / "a")
    stop_at(first, 300)
    first.train()
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", "another key, not that one")
    with pytest.raises(CheckpointCorrupt, match=r"signature of .* does not hold"):
        Trainer(config(store), root=tmp_path / "b").train()
    assert not (tmp_path / "b" / "runs" / "roaming" / "journal.jsonl").exists()
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", "short")
    with pytest.raises(ConfigurationError, match="it has 5 characters"):
        Trainer(config(store), root=tmp_path / "b").train()


@pytest.mark.slow
def test_fetch(store, tmp_path):
    root = Root(tmp_path / "b")
    with pytest.raises(RunNotFound, match="holds no run 'roaming'"):
        fetch(root, "roaming", store)
    first = Trainer(config(store), root=tmp_path / "a")
    remote = RemoteRun(store, "roaming", KEY.encode())
    remote.claim(Claim(1, "x", 0, 0, "one"))
    with pytest.raises(RunNotFound, match="holds only the configuration"):
        fetch(root, "roaming", store)
    stop_at(first, 300)
    first.train()
    fetch(root, "roaming", store)
    run = root.find("roaming")
    assert run.status().state == "stopped"
    assert [run.store().verify(version) for version in run.store().versions()].count(None) >= 2
    fetch(root, "roaming", store)  # nothing new
    other = Trainer(config(), root=tmp_path / "c")
    stop_at(other, 100)
    other.train()
    with pytest.raises(NameTaken, match="holds another run of the name roaming"):
        fetch(Root(tmp_path / "c"), "roaming", store)


@pytest.mark.slow
def test_an_outage_stops_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", KEY)
    monkeypatch.setattr("rltrack.training.session.MIRROR_SECONDS", 0.5)
    store = f"file://{tmp_path}/store"
    real = RemoteRun.upload_version
    refused = threading.Event()

    def refuses(self, version, attempt):
        if version.env_steps > 300:
            refused.set()
            raise ConnectionError("no route to host")
        real(self, version, attempt)

    class StillTrainsThen(TrainingHook):
        def on_iteration_end(self, progress, iteration_info):
            if progress.env_steps == 900:
                assert refused.wait(60)
                time.sleep(0.5)

    monkeypatch.setattr(RemoteRun, "upload_version", refuses)
    trainer = Trainer(config(store), root=tmp_path / "a")
    trainer.loop.add_hook(StillTrainsThen())
    assert trainer.train().env_steps == 1200
    run = Root(tmp_path / "a").find("roaming")
    warnings = [record["message"] for record in read_journal(run.journal_file) if record["kind"] == "warning"]
    assert any("no route to host. Trying again" in message for message in warnings)
    assert ship_run(run, patience=0.0) == EXIT_NOT_DELIVERED
    copied = RemoteRun(store, "roaming", KEY.encode()).journal_bytes()
    held_back = read_bookmark(run).mlflow
    assert left_behind(Root(tmp_path / "a")) == [], "no command tries in vain"
    assert "delivered after the run is resumed" in " ".join(delivery_lines(delivery_state(run)))
    assert held_back.journal <= copied < run.journal_file.stat().st_size, (
        "another machine might go on from what the store has"
    )

    monkeypatch.setattr(RemoteRun, "upload_version", real)
    again = Trainer(config(store), root=tmp_path / "a")
    again.train()
    assert again.loop.was_finished
    assert ship_run(run, patience=0.0) == EXIT_DELIVERED
    assert read_bookmark(run).mlflow.journal == run.journal_file.stat().st_size
    assert RemoteRun(store, "roaming", KEY.encode()).journal_bytes() == run.journal_file.stat().st_size


def test_a_superseded_version_hides_no_outage(tmp_path, monkeypatch):
    first = Trainer(config(), root=tmp_path / "a")
    stop_at(first, 300)
    first.train()
    run = Root(tmp_path / "a").find("roaming")
    real = RemoteRun.upload_version
    outcomes = []

    def uploads(self, version, attempt):
        if not outcomes:
            outcomes.append("superseded")
            run.store().delete([version])
            real(self, version, attempt)
        outcomes.append("no route to host")
        raise ConnectionError("no route to host")

    monkeypatch.setattr(RemoteRun, "upload_version", uploads)
    remote = RemoteRun(f"file://{tmp_path}/store", "roaming", KEY.encode())
    claim = Claim(1, "x", 0, 0, "one")
    remote.claim(claim)
    mirror = Mirror(remote, run.path, claim)
    while len(outcomes) < 3:
        time.sleep(0.01)
    assert outcomes[:2] == ["superseded", "no route to host"]
    assert ["no route to host" in problem for problem in mirror.take_problems()] == [True]
    assert not mirror.close(0.0)
    assert "rltrack-mirror" not in {thread.name for thread in threading.enumerate()}, (
        "it would write beside the next one"
    )


@pytest.mark.slow
def test_a_bucket_that_does_not_exist_is_refused(store, tmp_path):
    if store.startswith("file"):
        pytest.skip("folders are made")
    with pytest.raises(ConfigurationError, match=r"s3://nobody/x/roaming cannot be written: .*bucket does not exist"):
        Trainer(config("s3://nobody/x"), root=tmp_path / "a").train()
    assert not (tmp_path / "a" / "runs").exists() or not list((tmp_path / "a" / "runs").iterdir())


@pytest.mark.slow
def test_bad_stores_are_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", KEY)
    for url, message in (("bucket/runs", "checkpoints.store"), ("nowhere://x", "nowhere")):
        with pytest.raises((ConfigurationError, ImportError), match=message):
            Trainer(config(url), root=tmp_path / "a").train()
    with pytest.raises(ConfigurationError, match="needs a run name"):
        Trainer(config(f"file://{tmp_path}/s", name=None), root=tmp_path / "a").train()
    assert not list((tmp_path / "a").glob("runs/*/journal.jsonl"))
