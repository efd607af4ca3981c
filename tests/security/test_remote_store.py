"""What whoever may write to a remote store can do to the machine that reads it: withhold the run, and nothing else."""

from __future__ import annotations

import json
import shutil

import orjson
import pytest
import yaml

from rltrack.checkpoints.remote import RemoteRun
from rltrack.checkpoints.unsigned import check_journal, claim_of
from rltrack.errors import CheckpointCorrupt, ConfigurationError, RunTakenOver
from rltrack.runs import Root
from rltrack.tracking.delivery import NoDelivery
from rltrack.training.fetching import fetch
from rltrack.training.trainer import Trainer, config_of
from tests.resume.test_remote import KEY, config, stop_at


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a run of 300 env steps, and another run's."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLTRACK_SIGNING_KEY", KEY)
        patch.setattr("rltrack.tracking.delivery.Delivery", lambda run: NoDelivery())
        for name, seed in (("roaming", 3), ("other", 4)):
            tags = {"tags": {"kind": "original"}, "tensorboard_log_dir": None}
            made = config(f"file://{folder}/store", name=name, seed=seed, tracking=tags)
            trainer = Trainer(made, root=folder / "a")
            stop_at(trainer, 200)
            trainer.train()
    return folder


@pytest.fixture
def store(trained, tmp_path, monkeypatch):
    """A copy of that store, to spoil."""
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", KEY)
    shutil.copytree(trained / "store", tmp_path / "store")
    return tmp_path / "store"


def fetched(store, tmp_path) -> Root:
    root = Root(tmp_path / "b")
    fetch(root, "roaming", f"file://{store}")
    return root


def refused(store, tmp_path, words: str) -> None:
    with pytest.raises(CheckpointCorrupt, match=words):
        fetched(store, tmp_path)
    assert not (tmp_path / "b" / "runs" / "roaming" / "journal.jsonl").exists()


def change_config(store, unsigned=False, **change):
    file = store / "roaming" / "config.yaml"
    data = yaml.safe_load(file.read_text())
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    file.write_text(yaml.safe_dump(data))
    if unsigned:
        (store / "roaming" / "config.yaml.hmac").unlink()


def test_what_is_unchanged_is_fetched(store, tmp_path):
    run = fetched(store, tmp_path).find("roaming")
    assert config_of(run).seed == 3
    assert run.read_config()["tracking"]["tags"]["kind"] == "original"
    assert not list(run.path.glob(".fetching"))


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"wrappers": [{"subprocess.Popen": {"args": "id"}}]}},
        {"environment": {"id": "os:CartPole-v1"}},
        {"tracking": {"mlflow_tracking_uri": "http://evil"}},
        {"tracking": {"tensorboard_log_dir": "/etc"}},
        {"seed": 4},
    ],
)
def test_a_changed_configuration_is_refused(store, tmp_path, change):
    change_config(store, **change)
    refused(store, tmp_path, r"signature of .*config\.yaml does not hold")


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"wrappers": [{"subprocess.Popen": {"args": "id"}}]}},
        {"environment": {"id": "os:CartPole-v1"}},
        {"environment": {"kwargs": {"render_mode": {"env": "HOME"}}}},
        {"start_from": "other@best"},
        {"seed": 4},
    ],
)
def test_nor_is_one_without_its_signature_unless_it_is_what_was_trained(store, tmp_path, change):
    change_config(store, unsigned=True, **change)
    refused(
        store, tmp_path, "has no signature, and is not used: it is not what the newest signed version was trained with"
    )


def test_of_a_store_of_before_only_what_the_versions_vouch_for_is_taken(store, tmp_path):
    change_config(
        store, unsigned=True, tracking={"mlflow_tracking_uri": "http://evil", "tensorboard_log_dir": "/etc"},
        checkpoints={"keep_last": 9000, "store": "s3://evil/x"}, name="another",
    )  # fmt: skip
    run = fetched(store, tmp_path).find("roaming")
    taken = config_of(run)
    assert (taken.name, taken.seed, taken.checkpoints.keep_last) == ("roaming", 3, 2)
    assert taken.tracking.mlflow_tracking_uri is None
    assert taken.tracking.tensorboard_log_dir is None
    assert "evil" not in str(taken.checkpoints.store)
    change_config(store, seed=9)
    with pytest.raises(CheckpointCorrupt, match="not what the newest signed version was trained with"):
        fetch(Root(tmp_path / "c"), "roaming", f"file://{store}")


def test_another_runs_configuration_does_not_pass_for_this_ones(store, tmp_path):
    for file in ("config.yaml", "config.yaml.hmac"):
        shutil.copy(store / "other" / file, store / "roaming" / file)
    refused(store, tmp_path, r"signature of .*config\.yaml does not hold")


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: [", "\x00", "!!python/object/apply:os.system ['id']", "agent: 3\nenvironment: {id: 4}"]
)
def test_a_configuration_that_is_none(store, tmp_path, text):
    (store / "roaming" / "config.yaml").write_text(text)
    (store / "roaming" / "config.yaml.hmac").unlink()
    refused(store, tmp_path, "has no signature, and is not used")


def test_a_script_s_unsigned_configuration_says_nowhere_to_write_to(store, tmp_path):
    (store / "roaming" / "config.yaml.hmac").unlink()
    script = {
        "agent": {"type": "Mine"},
        "tracking": {"tensorboard_log_dir": "/etc"},
        "checkpoints": {"store": "s3://evil"},
    }
    (store / "roaming" / "config.yaml").write_text(yaml.safe_dump(script))
    taken = fetched(store, tmp_path).find("roaming").read_config()  # what the signed version holds
    assert taken["name"] == "roaming"
    assert not any(word in str(taken) for word in ("evil", "/etc", "Mine"))


def test_a_configuration_that_is_missing(store, tmp_path):
    (store / "roaming" / "config.yaml").unlink()
    refused(store, tmp_path, r"config\.yaml is missing")


GOOD = {"attempt": 1, "run_id": "0" * 32, "resumed_from": 0, "journal_bytes": 0, "host": "here"}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"3", b'"x"', b"null", b"{}", b"\xff", b"{", b"[" * 5000,
        *(json.dumps({**GOOD, **change}).encode() for change in (
            {"attempt": 2}, {"attempt": "1"}, {"attempt": 1.0}, {"attempt": True}, {"attempt": None}, {"resumed_from": -1},
            {"resumed_from": "x"}, {"journal_bytes": -5}, {"journal_bytes": [1]}, {"run_id": 3}, {"run_id": "../../x"},
            {"run_id": ""}, {"run_id": "x" * 1000}, {"host": {}}, {"host": None},
        )),
    ],
)  # fmt: skip
def test_an_attempt_that_is_none(store, tmp_path, data):
    with pytest.raises(CheckpointCorrupt, match="It was changed or damaged in the store"):
        claim_of(data, 1, "file:///x/attempts/000001.json")
    (store / "roaming" / "attempts" / "000001.json").write_bytes(data)
    refused(store, tmp_path, "attempts/000001.json")


def test_what_an_attempt_may_say():
    found = claim_of(
        json.dumps({**GOOD, "host": "a\x1b]0;x\x07\n" + "b" * 999, "journal_bytes": 2**62, "later": 1}).encode(), 1, "x"
    )
    assert found.host.startswith("a?]0;x??bbb")
    assert len(found.host) == 255
    assert found.journal_bytes == 2**62


def test_a_journal_said_to_be_huge_is_as_long_as_it_is(store, tmp_path):
    file = store / "roaming" / "attempts" / "000001.json"
    claim = json.loads(file.read_text())
    (store / "roaming" / "attempts" / "000002.json").write_text(
        json.dumps({**claim, "attempt": 2, "journal_bytes": 2**63, "resumed_from": 2**40})
    )
    size = RemoteRun(f"file://{store}", "roaming", KEY.encode()).journal_bytes()
    assert fetched(store, tmp_path).find("roaming").journal_file.stat().st_size == size


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "line 2: "), (b"[]", "a JSON object"), (b"{", "line 2: "), (b"{}", "'kind' is None"),
        (b'{"kind": [1], "time": 1}', "'kind' is"), (b'{"kind": "end", "time": "now"}', "lacks state"),
        (b'{"kind": "attempt", "time": 1, "number": "x"}', "lacks exact"),
        (b'{"kind": "evaluation", "time": 1, "step": 1, "mean": {}}', "lacks returns"),
        (b'{"kind": "metrics", "time": 1, "step": 1, "values": []}', "'values' is"),
        (b'{"kind": "metrics", "time": 1, "step": true, "values": {}}', "'step' is True"),
        (b'{"kind": "end", "time": 1, "state": "completed", "reason": 3}', "lacks env_steps"),
    ],
)  # fmt: skip
def test_a_journal_with_other_types(store, tmp_path, line, words):
    first = sorted((store / "roaming" / "journal").iterdir())[0]
    first.write_bytes(first.read_bytes().partition(b"\n")[0] + b"\n" + line + b"\n")
    refused(store, tmp_path, words)


def test_another_runs_journal(store, tmp_path):
    for file in (store / "roaming" / "journal").iterdir():
        file.unlink()
    for file in (store / "other" / "journal").iterdir():
        shutil.copy(file, store / "roaming" / "journal" / file.name)
    refused(store, tmp_path, "is not the journal of run")


def test_a_torn_last_line_is_no_damage():
    torn = b'{"kind": "configuration", "time": 1.0, "run_id": "x", "identity": {}}\n{"kind": "met'
    check_journal(torn, "x", "torn")


def sign(store, name: str, manifest: dict, folder: str | None = None) -> None:
    """As whoever has the key could: a program of another version, say."""
    from rltrack.checkpoints.version import seal

    remote = RemoteRun(f"file://{store}", name, KEY.encode())
    data = seal(manifest)
    to = folder or f"v{manifest['number']:06d}-{manifest['attempt']:06d}"
    remote._write(f"checkpoints/{to}/manifest.json.hmac", remote._signature(data))
    remote._write(f"checkpoints/{to}/manifest.json", data)


@pytest.mark.parametrize("file", ["../../../../escape", "/tmp/escape", "..", "a/b", "a\\b", "x" * 300, 3, None])
def test_files_stay_in_the_runs_folder_for_every_signer(store, tmp_path, file):
    _, manifest = RemoteRun(f"file://{store}", "roaming", KEY.encode()).versions()[-1]
    entry = {"sha256": "0" * 64, "bytes": 1}
    with_file = {**manifest, "files": {**manifest["files"], file: entry} if isinstance(file, str) else [file]}
    sign(store, "roaming", with_file)
    refused(store, tmp_path, "manifest.json")
    ring = {"first": 0, "written": 1, "capacity": 1, "segments": [{"file": file, "first": 0, "last": 1, **entry}]}
    sign(store, "roaming", {**manifest, "rings": {"x:y": ring}})
    refused(store, tmp_path, "manifest.json")
    assert not (tmp_path / "escape").exists()


def test_rows_are_named_by_a_hash(store, tmp_path):
    _, manifest = RemoteRun(f"file://{store}", "roaming", KEY.encode()).versions()[-1]
    piece = {"file": "x.safetensors", "first": 0, "last": 1, "sha256": "../../../config", "bytes": 1}
    ring = {"first": 0, "written": 1, "capacity": 1, "segments": [piece]}
    sign(store, "roaming", {**manifest, "rings": {"x:y": ring}})
    refused(store, tmp_path, "must be a SHA-256")


def test_an_old_version_does_not_pass_for_a_new_one(store, tmp_path):
    name, _ = RemoteRun(f"file://{store}", "roaming", KEY.encode()).versions()[0]
    checkpoints = store / "roaming" / "checkpoints"
    shutil.copytree(checkpoints / name, checkpoints / "v000999-000001")
    refused(store, tmp_path, "holds another version")


def test_a_copy_that_is_refused_leaves_what_is_here_as_it_was(store, tmp_path):
    root = fetched(store, tmp_path)
    before = root.find("roaming").journal_file.read_bytes()
    attempts = store / "roaming" / "attempts"
    claim = json.loads((attempts / "000001.json").read_text())
    (attempts / "000002.json").write_text(
        json.dumps({**claim, "attempt": 2, "resumed_from": 99, "journal_bytes": 2**40})
    )
    change_config(store, seed=4)
    with pytest.raises(CheckpointCorrupt):
        fetch(root, "roaming", f"file://{store}")
    assert root.find("roaming").journal_file.read_bytes() == before
    assert not list(root.find("roaming").path.glob("stale-*"))


def test_a_signature_is_renewed_without_a_moment_in_which_none_holds(store, tmp_path, monkeypatch):
    """The signature is there before what it signs; a kill in between leaves the one before valid."""
    remote = RemoteRun(f"file://{store}", "roaming", KEY.encode())
    real, new = RemoteRun._write, tmp_path / "new.yaml"
    new.write_text((store / "roaming" / "config.yaml").read_text() + "# changed\n")

    def dies(self, name, data):
        if name == "config.yaml":
            raise KeyboardInterrupt
        real(self, name, data)

    monkeypatch.setattr(RemoteRun, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        remote.upload_config(new)
    assert remote._configuration(None, print) is not None
    monkeypatch.setattr(RemoteRun, "_write", real)
    remote.upload_config(new)
    assert remote._configuration(None, print).endswith(b"# changed\n")


def test_an_attempt_that_died_before_it_copied_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", KEY)
    (tmp_path / "store" / "roaming" / "attempts").mkdir(parents=True)
    (tmp_path / "store" / "roaming" / "attempts" / "000001.json").write_bytes(orjson.dumps(GOOD))
    trainer = Trainer(config(f"file://{tmp_path}/store"), root=tmp_path / "b")
    stop_at(trainer, 100)
    trainer.train()
    assert Root(tmp_path / "b").find("roaming").status().state == "stopped"


def test_a_runs_name_leads_nowhere_else(tmp_path):
    for name in ("../x", "a/b", "", "x" * 200):
        with pytest.raises(ConfigurationError):
            RemoteRun(f"file://{tmp_path}", name, KEY.encode())


def test_an_attempt_is_never_seen_half_written(tmp_path, monkeypatch):
    """A trainer that is killed while it begins must not leave a file that keeps every other one away."""
    from rltrack import files as module

    store = RemoteRun(f"file://{tmp_path}", "roaming", KEY.encode())
    claim = claim_of(json.dumps(GOOD).encode(), 1, "x")
    real = module.write_bytes

    def dies(path, data, mode=0o644):
        real(path, data[:3], mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        store.claim(claim)
    assert store.claims() == []
    monkeypatch.setattr(module, "write_bytes", real)
    store.claim(claim)
    assert store.claims() == [claim]
    with pytest.raises(RunTakenOver):
        store.claim(claim)
    assert store.claims() == [claim]
