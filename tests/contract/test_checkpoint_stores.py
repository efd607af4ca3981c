"""What every checkpoint store keeps to: the folder of a run, and a remote store from which another machine fetches it."""

from __future__ import annotations

import os

import numpy as np
import pytest

from rltrack.checkpoints import CheckpointStore, Retention
from rltrack.checkpoints.remote import RemoteRun
from rltrack.checkpoints.rings import Ring, fill
from rltrack.checkpoints.unsigned import Claim
from rltrack.errors import CheckpointCorrupt, CheckpointNotFound

DETAILS = {"attempt": 1}


def state(value=1.0, loop=True):
    return {"policy": {"w": np.full(3, value)}, **({"loop": {"n": value}} if loop else {})}


def with_ring(rows):
    """A state whose ring buffer of 10 rows has had `rows` rows written."""
    numbers = np.zeros(10, dtype=np.int64)
    for row in range(rows):
        numbers[row % 10] = row
    return {"buffers": {"replay": Ring({"n": numbers}, rows)}, "loop": {}}


class StoreContract:
    """Subclasses say where versions go, and how another process finds them again."""

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path):
        self.store = CheckpointStore(tmp_path / "here" / "checkpoints", Retention(keep_last=3, keep_best=1))
        self.elsewhere = tmp_path / "elsewhere"

    def commit(self, tree, env_steps, score=None):
        return self.store.commit(tree, env_steps=env_steps, score=score, details=DETAILS)

    def reopened(self):
        """The store as another process finds it."""
        raise NotImplementedError

    def stored(self, version, name):
        """A version's file."""
        raise NotImplementedError

    def test_versions_come_back_by_name_steps_and_score(self):
        self.commit(state(1), 100)
        self.commit(state(2, loop=False), 200, score=5.0)
        self.commit(state(3), 300)
        found = self.reopened()
        assert [version.name for version in found.versions()] == ["v1", "v2", "v3"]
        assert found.find("best").name == found.find("v2").name == found.find(200).name == "v2"
        assert found.find("last").env_steps == 300
        assert found.find("best").score == 5.0
        assert found.read(found.find("v1"))["policy"]["w"].tolist() == [1, 1, 1]
        assert found.read(found.find("v3"))["loop"] == {"n": 3}
        assert [found.verify(version) for version in found.versions()] == [None] * 3
        for selector, message in (
            ("v9", r"committed: v1 \(100 env steps\)"),
            ("250", "300 env steps"),
            ("newest", "Use last, best"),
        ):
            with pytest.raises(CheckpointNotFound, match=message):
                found.find(selector)

    def test_nothing_is_there_at_first(self):
        assert self.reopened().newest_good() is None

    def test_what_was_superseded_is_gone(self):
        for step in range(1, 8):
            self.commit(state(step), 100 * step, score=9.0 if step == 2 else 0.0)
            assert self.reopened().find("last").env_steps == 100 * step
        assert [version.env_steps for version in self.reopened().versions()] == [200, 500, 600, 700]

    def test_rows_of_a_ring_come_back(self):
        for rows in (4, 8, 15, 31):
            self.commit(with_ring(rows), rows)
            found = self.reopened()
            ring = found.read(found.find("last"))["buffers"]["replay"]
            numbers = np.full(10, -1)
            fill({"n": numbers}, ring.chunks())
            assert ring.written == rows
            assert sorted(numbers[: min(rows, 10)]) == list(range(max(0, rows - 10), rows))

    @pytest.mark.parametrize("damage", ["flip", "truncate", "swap"])
    def test_damage_is_noticed_and_the_version_before_is_used(self, damage):
        first, newest = self.commit(state(1), 100), self.commit(state(2), 200)
        self.reopened()
        file = self.stored(newest, "policy.safetensors")
        data = file.read_bytes()
        if damage == "flip":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "truncate":
            os.truncate(file, 5)
        else:
            file.write_bytes(self.stored(first, "policy.safetensors").read_bytes())
        good, found, problems = self.reopened().newest_good()
        assert good.env_steps == 100
        assert found["policy"]["w"].tolist() == [1, 1, 1]
        assert len(problems) == 1
        assert "v000002" in problems[0]


class TestFolder(StoreContract):
    def reopened(self):
        return CheckpointStore(self.store.folder, self.store.retention)

    def stored(self, version, name):
        return version.path / name


class TestRemoteStore(StoreContract):
    """Each version is uploaded once; another machine fetches all of them."""

    @pytest.fixture(autouse=True)
    def remote(self, folders, tmp_path):
        self.url = tmp_path / "remote"
        self.remote = RemoteRun(f"file://{self.url}", "run", b"k" * 16)
        self.remote.claim(Claim(1, "id", 0, 0, "here"))
        (tmp_path / "config.yaml").write_text("{}")
        self.remote.upload_config(tmp_path / "config.yaml")
        self.uploaded, self.fetched = set(), 0

    def reopened(self):
        versions = self.store.versions()
        for version in versions:
            if version.number not in self.uploaded:
                self.remote.upload_version(version, 1)
                self.uploaded.add(version.number)
        if {version.number for version in versions} != self.uploaded:
            self.remote.delete_except({(version.number, 1) for version in versions})
        self.fetched += 1
        folder = self.elsewhere / str(self.fetched)
        folder.mkdir(parents=True)
        self.remote.download(folder, lambda said: None)
        return CheckpointStore(folder / "checkpoints", self.store.retention)

    def stored(self, version, name):
        return self.url / "run" / "checkpoints" / f"v{version.number:06d}-000001" / name

    def test_a_manifest_that_was_changed_is_refused_as_its_signature_does_not_hold(self):
        newest = self.commit(state(1), 100)
        self.reopened()
        file = self.stored(newest, "manifest.json")
        file.write_bytes(file.read_bytes().replace(b'"env_steps": 100', b'"env_steps": 101'))
        with pytest.raises(CheckpointCorrupt, match="signature"):
            self.reopened()
