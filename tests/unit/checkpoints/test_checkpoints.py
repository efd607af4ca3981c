from __future__ import annotations

import math
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rltrack.checkpoints import CheckpointStore, Retention
from rltrack.checkpoints.encoding import decode, encode, find_nonfinite
from rltrack.checkpoints.rings import Ring, fill
from rltrack.checkpoints.version import Version
from rltrack.errors import CheckpointCorrupt, CheckpointFailed

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | arrays(st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]), array_shapes(min_dims=0, min_side=0))
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


def same(one, other):
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(TREES)
@pytest.mark.slow
def test_state_comes_back_as_it_was(tree):
    assert same(decode(*encode(tree)[:2]), tree)


def test_nan_and_scalars_come_back():
    tree = {"a": math.nan, "b": -math.inf, "c": np.float32(2.5), "e": np.float64(1.5), "d": np.array(3)}
    back = decode(*encode(tree)[:2])
    assert math.isnan(back["a"])
    assert back["b"] == -math.inf
    assert isinstance(back["c"], np.float32)
    assert isinstance(back["e"], np.float64)
    assert back["d"].shape == ()


def test_what_is_not_data_is_refused_with_its_path():
    with pytest.raises(TypeError, match=r"/a/1: a builtins\.set"):
        encode({"a": [1, {3}]})
    with pytest.raises(TypeError, match="objects"):
        encode({"a": np.array([object()])})


def test_find_nonfinite_names_paths():
    found = find_nonfinite({"w": np.array([1.0, np.nan]), "n": 3, "i": np.array([1]), "x": [math.inf]})
    assert list(found) == ["w", "x/0"]


def state(value=1.0, loop=True):
    return {"policy": {"w": np.full(3, value)}, **({"loop": {"n": value}} if loop else {})}


def version(number, score, resumable):
    return Version(number, None, number, ("loop",) if resumable else ("policy",), score, 0.0)


@given(
    st.lists(st.tuples(st.none() | st.floats(-10, 10), st.booleans()), min_size=1),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_retention_keeps_the_newest_and_the_best(items, keep_last, keep_best):
    versions = [version(number, score, resumable) for number, (score, resumable) in enumerate(items, start=1)]
    gone = {item.number for item in Retention(keep_last, keep_best).superseded(versions)}
    resumable = [item.number for item in versions if item.is_resumable]
    assert not gone & set(resumable[-keep_last:])
    scored = [item for item in versions if item.score is not None]
    if keep_best and scored:
        best = max(item.score for item in scored)
        assert next(item.number for item in scored if item.score == best) not in gone
    assert len(versions) - len(gone) <= keep_last + keep_best


def test_retention_keeps_the_best_version_before_each_resumable_one_for_a_strategy_that_returns_to_it():
    scores = [5.0, None, 3.0, 7.0, None, 9.0, None]  # those without a score can be resumed
    versions = [version(number, score, score is None) for number, score in enumerate(scores, start=1)]
    gone = [item.number for item in Retention(keep_last=2, returns_to_best=True).superseded(versions)]
    assert gone == [1, 2, 3]
    gone = [item.number for item in Retention(keep_last=2, keep_every=2, returns_to_best=True).superseded(versions)]
    assert gone == [3]
    assert [item.number for item in Retention(keep_last=2).superseded(versions)] == [1, 2, 3, 4]


DAMAGES = ("delete", "no manifest", "torn manifest", "edited manifest", "other manifest")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_passed_over(tmp_path, damage):
    store = CheckpointStore(tmp_path, Retention(keep_last=5))
    store.commit(state(1), env_steps=100)
    newest = store.commit(state(2), env_steps=200)
    target = newest.path / "policy.safetensors"
    if damage == "delete":
        target.unlink()
    elif damage == "no manifest":
        (newest.path / "manifest.json").unlink()
    elif damage == "torn manifest":
        os.truncate(newest.path / "manifest.json", 30)
    elif damage == "edited manifest":
        manifest = newest.path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"env_steps": 200', '"env_steps": 201'))
    else:
        shutil.copy(store.versions()[0].path / "manifest.json", newest.path / "manifest.json")
    good, found, problems = store.newest_good()
    assert good.env_steps == 100
    assert found["policy"]["w"].tolist() == [1, 1, 1]
    assert len(problems) == 1
    assert "v000002" in problems[0]
    store.resume_from(good)
    assert store.commit(state(3), env_steps=300).number > newest.number, "numbers are never used twice"
    assert [item.env_steps for item in store.versions()] == [100, 300], (
        "what is damaged does not count as a version to keep"
    )


def test_a_version_superseded_during_a_look_is_not_damaged(tmp_path, monkeypatch, capsys):
    store = CheckpointStore(tmp_path, Retention(keep_last=5))
    gone, stays = (store.write(store.prepare({"loop": {"n": n}}, env_steps=n, score=None)) for n in (1, 2))
    listed = store.folders()
    store.delete([gone])
    monkeypatch.setattr(CheckpointStore, "folders", lambda self: listed)
    assert store.versions() == [stays]
    assert store.problems() == []
    assert "damaged" not in capsys.readouterr().err


def test_nothing_good_is_an_error_not_a_fresh_start(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.newest_good() is None
    only = store.commit(state(), env_steps=1)
    (only.path / "loop.json").write_text("{}")
    with pytest.raises(CheckpointCorrupt, match=r"loop\.json does not match"):
        store.newest_good()


def test_a_full_disk_leaves_the_earlier_versions(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.commit(state(1), env_steps=1)
    from rltrack.checkpoints import store as module

    real, calls = module.write_bytes, []

    def fails(path, data):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(module, "write_bytes", fails)
    with pytest.raises(CheckpointFailed, match="Earlier versions are untouched"):
        store.commit(state(2), env_steps=2)
    assert [item.env_steps for item in store.versions()] == [1]
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_newer_format_is_an_error_not_a_fresh_start(tmp_path):
    store = CheckpointStore(tmp_path)
    newest = store.commit(state(), env_steps=1)
    manifest = newest.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    assert store.versions() == []
    with pytest.raises(CheckpointCorrupt, match=r"format 99 is newer than this rltrack"):
        store.newest_good()


def test_pins_and_every(tmp_path):
    store = CheckpointStore(tmp_path, Retention(keep_last=1, keep_best=0, keep_every=1000))
    for env_steps in range(250, 3001, 250):
        version = store.commit(state(env_steps), env_steps=env_steps)
        if env_steps == 500:
            store.pin(version)
    assert [item.env_steps for item in store.versions()] == [500, 1000, 2000, 3000]
    store.unpin(store.find(500))
    assert [item.env_steps for item in store.prune()] == [500]


class Writes:
    """A ring buffer being written to, and a whole history to compare with."""

    def __init__(self, capacity):
        self.arrays = {"x": np.zeros((capacity, 2)), "n": np.zeros(capacity, dtype=np.int64)}
        self.written = 0

    def add(self, rows):
        for _ in range(rows):
            position = self.written % len(self.arrays["n"])
            self.arrays["n"][position] = self.written
            self.arrays["x"][position] = np.sin(self.written), np.cos(self.written)
            self.written += 1

    def ring(self):
        return Ring(self.arrays, self.written)


def restored(store, version, capacity):
    ring = store.read(version)["buffers"]["replay"]
    arrays = {"x": np.zeros((capacity, 2)), "n": np.zeros(capacity, dtype=np.int64)}
    fill(arrays, ring.chunks())
    return arrays, ring.written


@given(
    capacity=st.integers(1, 12), steps=st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=60)
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_a_ring_come_back_whatever_was_written_between(tmp_path_factory, capacity, steps):
    store = CheckpointStore(tmp_path_factory.mktemp("rings"), Retention(keep_last=2, keep_best=0))
    writes = Writes(capacity)
    for rows, crash in steps:
        writes.add(rows)
        version = store.commit({"buffers": {"replay": writes.ring()}, "loop": {}}, env_steps=writes.written)
        if crash:  # another process goes on
            store = CheckpointStore(store.folder, store.retention)
            store.resume_from(store.find("last"))
        arrays, written = restored(store, version, capacity)
        assert written == writes.written
        for name, array in arrays.items():
            assert np.array_equal(array, writes.arrays[name])
    for version in store.versions():
        assert store.verify(version) is None
    used = {segment.file for version in store.versions() for segment in version.segments()}
    found = {path.name for path in (store.folder / "segments").iterdir()} if used else set()
    assert found == used
    assert all(len(version.segments()) <= 32 for version in store.versions())


def test_each_row_is_written_once(tmp_path):
    store = CheckpointStore(tmp_path, Retention(keep_last=2))
    writes = Writes(1000)
    for _ in range(5):
        writes.add(100)
        store.commit({"buffers": {"replay": writes.ring()}, "loop": {}}, env_steps=writes.written)
    segments = store.versions()[-1].segments()
    assert [(one.first, one.last) for one in segments] == [(n, n + 100) for n in range(0, 500, 100)]


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_segment_is_noticed(tmp_path, damage):
    store = CheckpointStore(tmp_path, Retention(keep_last=3))
    writes = Writes(100)
    for _ in range(2):
        writes.add(30)
        store.commit({"buffers": {"replay": writes.ring()}, "loop": {}}, env_steps=writes.written)
    newest = tmp_path / "segments" / store.find("last").segments()[-1].file
    if damage == "flip":
        newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    else:
        newest.unlink()
    good, _, problems = store.newest_good()
    assert good.env_steps == 30
    assert newest.name in problems[0]


def test_a_version_that_waits_keeps_its_segments(tmp_path):
    store = CheckpointStore(tmp_path, Retention(keep_last=1))
    writes = Writes(1000)
    for _ in range(32):
        writes.add(10)
        store.commit({"buffers": {"replay": writes.ring()}, "loop": {}}, env_steps=writes.written)
    prepared = []
    for _ in range(2):
        writes.add(10)
        prepared.append(store.prepare({"buffers": {"replay": writes.ring()}, "loop": {}}, env_steps=writes.written))
    for one in prepared:  # writing the first merges segments that the second refers to
        store.write(one)
    arrays, _ = restored(store, store.find("last"), 1000)
    assert arrays["n"][:340].tolist() == list(range(340))
