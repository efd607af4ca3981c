"""Versions that somebody else wrote, or that were damaged: read right, or refused with words; nothing outside is touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from rltrack.checkpoints import CheckpointStore, Retention
from rltrack.checkpoints.encoding import decode, encode
from rltrack.checkpoints.mirror import STATE_FILE, attempt_of, mirrored_bytes
from rltrack.checkpoints.rings import Ring
from rltrack.checkpoints.version import MANIFEST, seal
from rltrack.errors import CheckpointCorrupt, CheckpointNotFound, ConfigurationError, RltrackError, RunDamaged
from rltrack.runs import Root
from rltrack.tracking.bookmark import Bookmark
from rltrack.tracking.destination import read_destination
from rltrack.tracking.report import RunReport
from rltrack.tracking.sinks.tensorboard import TensorBoardSink
from tests.support.runs import made_run

TREE = {"policy": {"w": np.arange(6.0).reshape(2, 3), "n": 3, "big": 2**70, "at": (1, float("nan"))}}


def commit(folder, steps=(10, 20)):
    store = CheckpointStore(folder, Retention(keep_last=9))
    for step in steps:
        rows = {"observations": np.arange(8.0).reshape(8, 1)}
        state = {**TREE, "loop": {"step": step, "raw": b"bytes"}, "buffers": {"rows": Ring(rows, step // 5)}}
        details = {"journal": {"next_seq": 1, "bytes": 0}, "run_id": "r", "identity": "i", "attempt": 1}
        store.commit(state, env_steps=step, details=details)
    return store


@pytest.fixture
def store(tmp_path):
    return commit(tmp_path / "runs" / "own" / "checkpoints")


@pytest.fixture
def outside(tmp_path):
    """What is not the run's own, and must be as it was whatever is read or deleted."""
    folder = tmp_path / "outside"
    (folder / "segments").mkdir(parents=True)
    for name in ("secret.json", "secret.safetensors", "segments/v000001-0.safetensors", "manifest.json"):
        (folder / name).write_text("somebody else's")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def newest(store):
    return store.folder / "v000002"


def manifest_of(folder):
    found = orjson.loads((folder / MANIFEST).read_bytes())
    del found["sha256"]
    return found


def reseal(folder, manifest):
    (folder / MANIFEST).write_bytes(seal(manifest))


def put(folder, name, data):
    """Write a file of a version, so that it matches its manifest again."""
    (folder / name).write_bytes(data)
    manifest = manifest_of(folder)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    reseal(folder, manifest)


def through_every_reader(store):
    """Only errors that rltrack raises on purpose come out."""
    for read in (
        store.versions,
        store.problems,
        store.pinned,
        store.prune,
        lambda: [store.find(selector) for selector in ("last", "best", "v2", 20)],
        lambda: [store.read(version) for version in store.versions()],
        lambda: [version.size_bytes + len(version.segments()) for version in store.versions()],
        lambda: [list(ring.chunks()) for version in store.versions() for ring in version.rings().values()],
        store.newest_good,
        lambda: store.resume_from(store.find("v1")),
    ):
        try:
            read()
        except RltrackError:
            continue


def changed(**fields):
    return lambda manifest: manifest | fields


def nested(manifest, *keys, value):
    inner = manifest
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return manifest


def in_segment(**fields):
    def change(manifest):
        manifest["rings"]["buffers:/rows"]["segments"][0] |= fields
        return manifest

    return change


ENTRY = {"sha256": "0" * 64, "bytes": 15}

MANIFESTS = {
    "a file outside the folder": changed(files={"../../../../outside/secret.json": ENTRY}),
    "a file by its absolute path": changed(files={"/etc/passwd": ENTRY}),
    "a hidden file": changed(files={".secret": ENTRY}),
    "a part outside the folder": changed(parts=["../../../../outside/secret", "loop"]),
    "a part with a null byte": changed(parts=["a\0b"]),
    "a part twice": changed(parts=["loop", "loop"]),
    "parts as a text": changed(parts="loop"),
    "a segment outside the folder": in_segment(file="../../../../../outside/segments/v000001-0.safetensors"),
    "a segment that ends before it begins": in_segment(first=9, last=3),
    "a segment of a negative size": in_segment(bytes=-1),
    "a segment with a field too few": lambda m: nested(m, "rings", "buffers:/rows", "segments", value=[{"file": "a"}]),
    "a ring without room": lambda m: nested(m, "rings", "buffers:/rows", "capacity", value=0),
    "a ring of more rows than room": lambda m: nested(m, "rings", "buffers:/rows", "written", value=10**9),
    "rings as a list": changed(rings=[1]),
    "segments as a text": lambda m: nested(m, "rings", "buffers:/rows", "segments", value="v000001-0.safetensors"),
    "a number as a text": changed(number="2"),
    "another number": changed(number=7),
    "negative env steps": changed(env_steps=-1),
    "env steps beyond 64 bits": changed(env_steps=2**64 - 1),
    "env steps as a truth value": changed(env_steps=True),
    "env steps as a fraction": changed(env_steps=1e300),
    "a score as a text": changed(score="best of all"),
    "a time as a list": changed(created=[]),
    "a time beyond all calendars": changed(created=1e300),
    "a size as a list": lambda m: nested(m, "files", "loop.json", "bytes", value=[1]),
    "a digest as a number": lambda m: nested(m, "files", "loop.json", "sha256", value=5),
    "files as a list": changed(files=["loop.json"]),
    "no files": lambda m: {key: value for key, value in m.items() if key != "files"},
    "format as a text": changed(format="1"),
    "format 0": changed(format=0),
    "a newer format": changed(format=99),
    "a journal position as a text": changed(journal={"next_seq": "1", "bytes": 0}),
    "a negative journal position": changed(journal={"next_seq": 1, "bytes": -5}),
    "an attempt as a text": changed(attempt="../../x"),
    "versions as a list": changed(versions=[]),
}


@pytest.mark.parametrize("attack", MANIFESTS)
def test_a_manifest_that_no_rltrack_wrote_is_refused(store, outside, attack):
    folder = newest(store)
    reseal(folder, MANIFESTS[attack](manifest_of(folder)))
    assert [version.name for version in store.versions()] == ["v1"]
    [problem] = store.problems()
    assert str(folder) in problem
    through_every_reader(store)


RAW = {
    "a list": b"[]",
    "a text": b'"manifest"',
    "a number": b"5",
    "nothing": b"",
    "no UTF-8": b"\xff\xfe\x00",
    "nested deep": b"[" * 100_000,
    "nested deep inside": b'{"format": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "an infinite number": b'{"format": 1e999}',
    "a number of a thousand digits": b'{"format": ' + b"9" * 5000 + b"}",
    "pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/x'\ntR.",
}


@pytest.mark.parametrize("attack", RAW)
def test_a_manifest_that_is_none(store, outside, attack):
    (newest(store) / MANIFEST).write_bytes(RAW[attack])
    assert [version.name for version in store.versions()] == ["v1"]
    assert len(store.problems()) == 1
    through_every_reader(store)


def test_duplicate_keys_say_the_same_to_every_reader(store, outside):
    folder = newest(store)
    data = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(
        data.replace(b"{", b'{"parts": ["../../../../outside/secret"], "env_steps": -4,', 1)
    )
    assert store.find("last").env_steps == 20, "the last one counts, which is what its SHA-256 is of"
    assert store.find("last").parts == ("policy", "loop", "buffers")
    through_every_reader(store)


def skeleton(text):
    return lambda folder: put(folder, "policy.json", text)


SKELETONS = {
    "an unknown tag": b'{"w": {"$object": "os.system"}}',
    "a tag and more": b'{"w": {"$array": "/w", "$shape": [2, 3], "$scalar": false, "$call": "x"}}',
    "two tags": b'{"w": {"$tuple": [], "$float": "nan"}}',
    "a shape that does not fit": b'{"w": {"$array": "/w", "$shape": [7], "$scalar": false}}',
    "a negative shape": b'{"w": {"$array": "/w", "$shape": [-1], "$scalar": false}}',
    "a huge shape": b'{"w": {"$array": "/w", "$shape": [1000000000000, 1000000000000], "$scalar": false}}',
    "a shape of a hundred axes": b'{"w": {"$array": "/w", "$shape": [' + b"1," * 99 + b'6], "$scalar": false}}',
    "a shape as a text": b'{"w": {"$array": "/w", "$shape": "6", "$scalar": false}}',
    "no shape": b'{"w": {"$array": "/w"}}',
    "an array that is not there": b'{"w": {"$array": "/x", "$shape": [1], "$scalar": false}}',
    "an array for every entry of a long list": b"["
    + b",".join([b'{"$array": "/w", "$shape": [6], "$scalar": false}'] * 1000)
    + b"]",
    "an array as a number": b'{"w": {"$array": "/w", "$shape": [2, 3], "$scalar": true}}',
    "an array by a list": b'{"w": {"$array": ["/w"], "$shape": [6], "$scalar": false}}',
    "bytes that are numbers": b'{"w": {"$bytes": "/w"}}',
    "a ring that is not there": b'{"w": {"$ring": "/../../x"}}',
    "a number by another name": b'{"w": {"$float": "1e5"}}',
    "a number of too many digits": b'{"w": {"$int": "' + b"9" * 5000 + b'"}}',
    "a number in words": b'{"w": {"$int": "0x10"}}',
    "pairs that are none": b'{"w": {"$pairs": [[1, 2, 3]]}}',
    "a key that cannot be one": b'{"w": {"$pairs": [[[1], 2]]}}',
    "a tuple of a text": b'{"w": {"$tuple": "abc"}}',
    "nested deep": b"[" * 100_000,
    "nested deep and closed": b'{"a":' * 900 + b"1" + b"}" * 900,
    "no JSON": b"pickle",
    "nothing": b"",
}


@pytest.mark.parametrize("attack", SKELETONS)
def test_a_skeleton_that_no_rltrack_wrote_is_refused(store, outside, attack):
    put(newest(store), "policy.json", SKELETONS[attack])
    version = store.find("last")
    if attack == "nested deep and closed":  # data like any other, or too deep for this Python
        through_every_reader(store)
        return
    with pytest.raises(CheckpointCorrupt, match="policy cannot be read"):
        store.read(version)
    assert store.newest_good()[0].name == "v1"
    through_every_reader(store)


def header(text, rest=b""):
    return struct.pack("<Q", len(text)) + text + rest


TENSORS = {
    "nothing": b"",
    "a header longer than anything": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 10**7) + b"{}",
    "a header that is no JSON": header(b"pickle"),
    "a header as a list": header(b"[]"),
    "a header nested deep": header(b"[" * 100_000),
    "rows beyond the file": header(b'{"/w":{"dtype":"F64","shape":[6],"data_offsets":[0,48]}}'),
    "offsets backwards": header(b'{"/w":{"dtype":"F64","shape":[6],"data_offsets":[48,0]}}', b"0" * 48),
    "negative offsets": header(b'{"/w":{"dtype":"F64","shape":[6],"data_offsets":[-48,0]}}', b"0" * 48),
    "an unknown type": header(b'{"/w":{"dtype":"OBJECT","shape":[6],"data_offsets":[0,48]}}', b"0" * 48),
    "a shape beyond 64 bits": header(
        b'{"/w":{"dtype":"F64","shape":[9223372036854775807,9223372036854775807],"data_offsets":[0,48]}}', b"0" * 48
    ),
    "a shape that does not fit": header(b'{"/w":{"dtype":"F64","shape":[7],"data_offsets":[0,48]}}', b"0" * 48),
    "overlapping": header(
        b'{"/w":{"dtype":"F64","shape":[6],"data_offsets":[0,48]},"/v":{"dtype":"F64","shape":[6],"data_offsets":[0,48]}}',
        b"0" * 48,
    ),
}


@pytest.mark.parametrize("attack", TENSORS)
def test_a_tensor_file_that_no_rltrack_wrote_is_refused(store, outside, attack):
    put(newest(store), "policy.safetensors", TENSORS[attack])
    with pytest.raises(CheckpointCorrupt, match="policy cannot be read"):
        store.read(store.find("last"))
    through_every_reader(store)


def segment_of(store, data):
    """Replace a segment, so that it matches its manifests again."""
    for folder in (store.folder / "v000001", newest(store)):
        manifest = manifest_of(folder)
        for ring in manifest["rings"].values():
            first = ring["segments"][0]
            (store.folder / "segments" / first["file"]).write_bytes(data)
            first |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        reseal(folder, manifest)


SEGMENTS = {
    "no safetensors": b"pickle",
    "a header longer than anything": struct.pack("<Q", 2**63),
    "fewer rows than it says": save_tensors({"observations": np.zeros((1, 1))}),
    "a number instead of rows": save_tensors({"observations": np.zeros(())}),
}


@pytest.mark.parametrize("attack", SEGMENTS)
def test_a_segment_that_no_rltrack_wrote_is_refused(store, outside, attack):
    segment_of(store, SEGMENTS[attack])
    [ring] = store.find("last").rings().values()
    with pytest.raises(CheckpointCorrupt, match="segments/v000001-0"):
        list(ring.chunks())
    through_every_reader(store)


@pytest.mark.parametrize(
    "text", ["{}", '{"1": 2}', "[1.5]", '["1"]', "[-1]", "[true]", "[1e999]", "[[1]]", "null", "[" * 100_000, "", "\0"]
)
def test_pins_that_no_rltrack_wrote_are_refused(store, outside, text):
    (store.folder / "pins.json").write_text(text)
    with pytest.raises(CheckpointCorrupt, match=r"pins.json"):
        store.pinned()
    with pytest.raises(CheckpointCorrupt):
        store.prune()
    assert len(store.versions()) == 2, "what may be pinned is not deleted"
    assert commit(store.folder, steps=[30]).find("last").env_steps == 30, "and training goes on"
    through_every_reader(store)


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link(path, target):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)


def huge(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


FILES = {
    "a manifest that is a pipe": lambda folder, outside: fifo(folder / MANIFEST),
    "a manifest without an end": lambda folder, outside: link(folder / MANIFEST, "/dev/zero"),
    "a manifest of a terabyte": lambda folder, outside: huge(folder / MANIFEST),
    "a manifest that is a folder": lambda folder, outside: (os.remove(folder / MANIFEST), os.mkdir(folder / MANIFEST)),
    "a part that is a pipe": lambda folder, outside: fifo(folder / "policy.json"),
    "a part without an end": lambda folder, outside: link(folder / "policy.safetensors", "/dev/zero"),
    "a part of a terabyte": lambda folder, outside: huge(folder / "loop.safetensors"),
    "a part that is somebody else's file": lambda folder, outside: link(folder / "loop.json", outside / "secret.json"),
    "a version that is somebody else's folder": lambda folder, outside: link(folder, outside),
    "a version that is a file": lambda folder, outside: (shutil.rmtree(folder), folder.write_text("v2")),
    "a leftover that is somebody else's folder": lambda folder, outside: link(folder.parent / ".tmp-v000009", outside),
    "pins that are a pipe": lambda folder, outside: fifo(folder.parent / "pins.json"),
    "segments that are somebody else's": lambda folder, outside: link(folder.parent / "segments", outside / "segments"),
    "a version of the largest number": lambda folder, outside: (folder.parent / f"v{'9' * 200}").mkdir(),
    "a version in other digits": lambda folder, outside: (folder.parent / "v٠٠٠٠٠٩").mkdir(),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("attack", FILES)
def test_files_that_are_something_else(store, outside, attack):
    FILES[attack](newest(store), outside)
    through_every_reader(store)
    following = CheckpointStore(store.folder, Retention(keep_last=1))
    following.commit(
        {"loop": {"step": 30}}, env_steps=30
    )  # a training that goes on deletes what is superseded: its own
    through_every_reader(following)


def test_segments_of_another_name_are_left_alone(store):
    (store.folder / "segments" / "notes.txt").write_text("mine")
    store.prune()
    assert (store.folder / "segments" / "notes.txt").exists()


@pytest.mark.parametrize("selector", ["²", "v²", "9" * 5000, "v" + "9" * 5000, "../v1", "-1", "1e3", ""])
def test_selectors_that_are_none(store, selector):
    with pytest.raises(CheckpointNotFound):
        store.find(selector)


@pytest.mark.parametrize("part", ["../policy", "a/b", ".hidden", "", "a\0b", "x" * 300])
def test_an_agents_part_must_be_a_files_name(store, part):
    with pytest.raises(ConfigurationError, match="A part becomes a file"):
        store.commit({part: 1}, env_steps=40)


# ---- data that keeps its meaning ----


def test_arrays_under_the_same_path_are_kept_apart():
    """Each came back as the other before."""
    one, other, third = (np.full(2, value) for value in (1.0, 2.0, 3.0))
    for tree in (
        {"a/b": one, "a": {"b": other}},
        {1: one, "1": other, (1,): third},
        {np.int64(1): one, np.int64(2): other},
        {b"x": one, b"y": other},
    ):
        back = decode(*encode(tree)[:2])
        assert [type(key) for key in back] == [type(key) for key in tree]
        assert repr(back) == repr(tree)


# ---- bytes changed at random ----

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "remove"]), st.integers(0, 5000), st.binary(min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=4,
)


def edited(data, edits):
    for how, at, new in edits:
        at %= max(len(data), 1)
        if how == "flip":
            data = data[:at] + new + data[at + len(new) :]
        elif how == "cut":
            data = data[:at]
        elif how == "insert":
            data = data[:at] + new + data[at:]
        else:
            data = data[:at] + data[at + len(new) :]
    return data


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return commit(tmp_path_factory.mktemp("pristine") / "checkpoints").folder


def copy_of(pristine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "checkpoints"
    shutil.copytree(pristine, folder)
    return CheckpointStore(folder, Retention(keep_last=9))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=EDITS,
    file=st.sampled_from([MANIFEST, "policy.json", "policy.safetensors", "pins.json"]),
    hashed=st.booleans(),
)
@example(edits=[("flip", 0, b"[")], file=MANIFEST, hashed=False)
@example(edits=[("cut", 0, b"x")], file="policy.json", hashed=True)
@pytest.mark.slow
def test_bytes_changed_anywhere(pristine, tmp_path_factory, edits, file, hashed):
    store = copy_of(pristine, tmp_path_factory)
    folder = newest(store)
    before = store.find("last")
    if file == "pins.json":
        (store.folder / file).write_bytes(edited(b"[1, 2]", edits))
        with contextlib.suppress(CheckpointCorrupt):
            assert all(type(number) is int for number in store.pinned())
    elif hashed and file != MANIFEST:  # somebody who makes the digests fit
        put(folder, file, edited((folder / file).read_bytes(), edits))
    else:
        original = (folder / file).read_bytes()
        (folder / file).write_bytes(edited(original, edits))
        found = [version for version in store.versions() if version.number == 2]
        assert [version.details for version in found] in ([], [before.details]), "as it was written, or not at all"
        if found and file != MANIFEST and (folder / file).read_bytes() != original:
            with pytest.raises(CheckpointCorrupt):
                store.read(found[0])
    through_every_reader(store)
    shutil.rmtree(store.folder)


# ---- the small files beside a run ----

SMALL = ("{", "[]", "5", '""', "null", '{"attempt": "x", "journal_bytes": 1}', '{"attempt": 1}', "[" * 100_000,
         '{"attempt": [1], "journal_bytes": {}}', '{"attempt": -1, "journal_bytes": 0}', "\0")  # fmt: skip


@pytest.mark.parametrize("text", SMALL)
def test_mirror_json_that_no_rltrack_wrote(tmp_path, text):
    (tmp_path / STATE_FILE).write_text(text)
    for read in (attempt_of, mirrored_bytes):
        with pytest.raises(CheckpointCorrupt, match=r"mirror.json"):
            read(tmp_path)


@pytest.mark.parametrize(
    "text", [*SMALL, '{"tracking_uri": ["x"]}', '{"tracking_uri": "x", "experiment": 5}', '{"more": 1}']
)
def test_destination_json_that_no_rltrack_wrote(own_root, text):
    run = Root(own_root).create("one", "")
    run.destination_file.write_text(text)
    with pytest.raises(RunDamaged, match="nothing is delivered"):
        read_destination(run)


@pytest.mark.parametrize(
    "files",
    [{"../../../../outside/thesis.txt": 0}, {"/etc/hostname": 0}, {"events.out.tfevents.1.rltrack.000000": -1},
     {"events.out.tfevents.1.rltrack.000000": "0"}, {"notes.txt": 0}],
)  # fmt: skip
def test_a_bookmark_cuts_off_no_other_files(own_root, tmp_path, files):
    """What lies behind the position of a bookmark is cut off: that was possible with any file."""
    run = made_run(own_root, "one")
    outside = tmp_path / "outside" / "thesis.txt"
    outside.parent.mkdir()
    outside.write_text("years of work")
    run.tensorboard.mkdir()
    (run.tensorboard / "notes.txt").write_text("mine")
    sink_of_run = TensorBoardSink({"folder": str(run.tensorboard), "files": files, "open": True})
    report = RunReport(run, {})
    assert sink_of_run.is_lost(report)
    sink_of_run.state.clear()  # as the shipper does
    sink_of_run.open(report)
    sink_of_run.close()
    assert outside.read_text() == "years of work"
    assert (run.tensorboard / "notes.txt").read_text() == "mine"


def test_events_are_not_written_through_a_link(own_root, tmp_path):
    run = made_run(own_root, "one")
    (tmp_path / "thesis.txt").write_text("years of work")
    run.tensorboard.mkdir()
    name = "events.out.tfevents.1.rltrack.000000"
    (run.tensorboard / name).symlink_to(tmp_path / "thesis.txt")
    sink_of_run = TensorBoardSink({"folder": str(run.tensorboard), "files": {name: 0}, "open": True})
    with pytest.raises(OSError, match="symbolic link"):
        sink_of_run.open(RunReport(run, {}))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def sink(**fields):
    return {"journal": 0, "resources": 0, "finished_at": None, "set_aside": 0, "problem": None, "state": {}} | fields


@pytest.mark.parametrize(
    "change",
    [
        {"mlflow": "x"},
        {"mlflow": sink(journal="5")},
        {"mlflow": sink(journal=-5)},
        {"mlflow": sink(state=[])},
        {"mlflow": sink(state={"run_id": ["x"]})},
        {"mlflow": sink(state={"tracking_uri": 5})},
        {"mlflow": sink(problem={"kind": "person", "message": 5, "since": 0})},
        {"mlflow": sink(problem=[1])},
        {"tensorboard": sink(state={"files": []})},
        {"tensorboard": sink(more=1)},
        {"context": 5},
        {"format": 2},
    ],
)
def test_a_bookmark_that_no_rltrack_wrote_counts_as_none(tmp_path, change):
    good = {"format": 1, "run_id": "r", "mlflow": sink(journal=7), "tensorboard": sink(), "context": {}}
    path = tmp_path / "delivered.json"
    path.write_text(json.dumps(good))
    assert Bookmark.load(path, "r").mlflow.journal == 7
    path.write_text(json.dumps(good | change))
    assert Bookmark.load(path, "r") == Bookmark("r")


@pytest.mark.parametrize("text", SMALL)
def test_a_bookmark_that_is_none(tmp_path, text):
    (tmp_path / "delivered.json").write_text(text)
    assert Bookmark.load(tmp_path / "delivered.json", "r") == Bookmark("r")
