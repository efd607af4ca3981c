from __future__ import annotations

import json
import math
import os
import shutil
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltrack import damage
from rltrack.errors import JournalFailed
from rltrack.journal import Journal, decode_record, encode_record, read_from, read_journal, read_tail
from rltrack.journal.seal import read_seal, seal_file


def fill(path, n=20):
    journal = Journal(path)
    journal.note("configuration", run_id="x")
    for step in range(1, n + 1):
        journal.write("metrics", step * 10, values={"a": step / 3, "b": math.nan if step % 2 else math.inf})
    journal.close()


def test_a_signals_handler_writes_in_the_middle_of_another_record(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    previous = signal.signal(signal.SIGALRM, lambda *_: journal.note("signal", name="SIGALRM"))
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        for step in range(5000):
            journal.write("metrics", step, values={"x": step})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        journal.close()
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["seq"] for line in lines if "seq" in line] == list(range(1, 5001))
    assert len(lines) > 5000


def test_one_line_a_record_with_fixed_time_and_numbers(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", clock=lambda: 12.5)
    journal.note("warning", message="late")
    journal.write("metrics", 10, values={"x": 1.0})
    journal.write("metrics", 20, values={"x": -math.inf})
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [line.pop("line") for line in lines] == [1, 2, 3]
    assert all(len(line.pop("crc")) == 8 for line in lines)
    assert lines == [
        {"time": 12.5, "kind": "warning", "message": "late"},
        {"seq": 1, "time": 12.5, "kind": "metrics", "step": 10, "values": {"x": 1.0}},
        {"seq": 2, "time": 12.5, "kind": "metrics", "step": 20, "values": {"x": "-Infinity"}},
    ]
    assert list(read_journal(tmp_path / "j.jsonl"))[2]["values"]["x"] == -math.inf


@given(st.dictionaries(st.text(min_size=1), st.floats()))
def test_every_number_comes_back(values):
    back = decode_record(encode_record({"kind": "metrics", "time": 1.0, "step": 1, "values": values}))["values"]
    assert back.keys() == values.keys()
    assert all(back[key] == value or (math.isnan(back[key]) and math.isnan(value)) for key, value in values.items())


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000))
def test_a_journal_cut_at_any_byte_opens_and_goes_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "j.jsonl"
    fill(path)
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    journal = Journal(path)
    assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
    assert journal.next_seq == max(kept - 1, 0) + 1
    journal.write("metrics", 999, values={"a": 1.0})
    journal.close()
    records = list(read_journal(path))
    assert len(records) == kept + 1
    assert records[-1]["step"] == 999


def test_an_exact_resume_adds_nothing_that_is_there(tmp_path):
    fill(tmp_path / "j.jsonl")
    before = (tmp_path / "j.jsonl").read_bytes()
    journal = Journal(tmp_path / "j.jsonl")
    journal.resume_from(11, 100, exact=True)
    for step in range(11, 21):
        journal.write("metrics", step * 10, values={"a": step / 3})
    assert (tmp_path / "j.jsonl").read_bytes() == before
    journal.write("metrics", 210, values={"a": 7.0})
    assert list(read_journal(tmp_path / "j.jsonl"))[-1]["seq"] == 21


def test_an_inexact_resume_drops_up_to_the_high_water_mark(tmp_path):
    fill(tmp_path / "j.jsonl")
    journal = Journal(tmp_path / "j.jsonl")
    journal.resume_from(11, 100, exact=False)
    for step in (110, 150, 200, 205, 230):
        journal.write("metrics", step, values={"a": 0.0})
    records = [record for record in read_journal(tmp_path / "j.jsonl") if record["kind"] == "metrics"]
    assert [record["step"] for record in records[20:]] == [205, 230]
    assert [record["seq"] for record in records] == list(range(1, 23))


EPISODES, DECISIONS, STOP = 7, 50, 200


def train(path, version=None, *, log_interval, killed_at=STOP, checkpoint_at=100):
    """Write what a training would, from a version on; return the version that it takes, as next number and env steps."""
    journal, position = Journal(path), None
    if version is not None:
        journal.resume_from(*version, exact=True)
    for step in range(1 + (version[1] if version else 0), killed_at + 1):
        if step % EPISODES == 0:
            journal.write("episodes", step, returns=[1.0], lengths=[EPISODES], steps=[step])
        if step % log_interval == 0:
            journal.write("metrics", step, values={"a": float(step)})
        if step % DECISIONS == 0 and step < killed_at:
            journal.write("decision", step, decision="steady", reason="", numbers={})
        if step == checkpoint_at:
            position = (journal.position["next_seq"], step)
    journal.close()
    return position


def steps_of(path, kind):
    return [record["step"] for record in read_journal(path) if record["kind"] == kind]


@pytest.mark.parametrize("intervals", [(1, 20), (20, 1), (4, 6), (6, 4)])
@pytest.mark.parametrize("killed_at", [99, 100, 140, 150, 155])
def test_a_resume_with_another_log_interval_loses_no_record_and_writes_none_twice(tmp_path, intervals, killed_at):
    path = tmp_path / "j.jsonl"
    before, after = intervals
    version = train(path, log_interval=before, killed_at=killed_at, checkpoint_at=40)
    train(path, version, log_interval=after)
    assert steps_of(path, "episodes") == list(range(EPISODES, STOP + 1, EPISODES))
    assert steps_of(path, "decision") == [50, 100, 150]
    metrics = steps_of(path, "metrics")
    changed = max(step for step in range(killed_at + 1) if step % before == 0)
    assert metrics == [step for step in range(1, STOP + 1) if step % (before if step <= changed else after) == 0]
    assert [record["seq"] for record in read_journal(path)] == list(range(1, len(list(read_journal(path))) + 1))


@pytest.mark.parametrize("intervals", [(1, 20, 1), (20, 1, 20), (20, 1, 4), (4, 6, 20)])
@pytest.mark.parametrize("takes_another", [False, True])
def test_the_log_interval_changes_in_each_of_three_attempts(tmp_path, intervals, takes_another):
    path = tmp_path / "j.jsonl"
    version = train(path, log_interval=intervals[0], killed_at=150, checkpoint_at=40)
    another = train(path, version, log_interval=intervals[1], killed_at=130)
    train(path, another if takes_another else version, log_interval=intervals[2])
    assert steps_of(path, "episodes") == list(range(EPISODES, STOP + 1, EPISODES))
    assert steps_of(path, "decision") == [50, 100, 150]
    metrics = steps_of(path, "metrics")
    assert metrics == sorted(set(metrics))


def test_a_record_at_a_request_to_stop_costs_no_record_after_the_resume(tmp_path):
    path = tmp_path / "j.jsonl"
    version = train(path, log_interval=10, killed_at=123, checkpoint_at=40)
    journal = Journal(path)
    journal.write("decision", 123, decision="steady", reason="", numbers={})  # the last record before a kill
    journal.close()
    train(path, version, log_interval=10)
    assert steps_of(path, "episodes") == list(range(EPISODES, STOP + 1, EPISODES))
    assert steps_of(path, "metrics") == list(range(10, STOP + 1, 10))


def test_a_branch_that_is_resumed_exactly_does_not_mix_with_the_one_that_got_further(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path)  # to step 200
    journal = Journal(path)
    journal.resume_from(11, 100, exact=False)
    journal.write("metrics", 150, values={"a": 0.0})
    version = (journal.position["next_seq"], 150)
    journal.close()
    journal = Journal(path)
    journal.resume_from(*version, exact=True)
    for step in range(160, 231, 10):
        journal.write("metrics", step, values={"a": 0.0})
    assert steps_of(path, "metrics") == list(range(10, 231, 10))


def test_the_last_number_is_found_behind_many_others(tmp_path):
    fill(tmp_path / "j.jsonl", 3)
    journal = Journal(tmp_path / "j.jsonl")
    for _ in range(3000):
        journal.note("warning", message="x" * 100)
    journal.close()
    assert Journal(tmp_path / "j.jsonl").next_seq == 4
    assert read_tail(tmp_path / "j.jsonl")[-1]["kind"] == "warning"


def damaged(path):
    """The records that are good, and what is said of the rest."""
    with damage.collected() as found:
        return list(read_journal(path)), " ".join(found.new)


def test_a_broken_line_in_the_middle_is_left_out_and_named(tmp_path):
    fill(tmp_path / "j.jsonl", 3)
    lines = (tmp_path / "j.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "j.jsonl").write_bytes(b"".join([lines[0], b"{broken\n", *lines[1:]]))
    records, said = damaged(tmp_path / "j.jsonl")
    assert [record.get("seq") for record in records] == [None, 1, 2, 3]
    assert "lacks line 2, which is damaged" in said
    assert "4 records are good" in said


def test_every_changed_byte_is_noticed_and_changes_no_number(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, 4)
    whole = path.read_bytes()
    good = list(read_journal(path))
    for position in range(len(whole)):
        for flip in (1, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            records, said = damaged(path)
            assert said, (position, flip)
            assert all(repr(record) in map(repr, good) for record in records)


def test_a_line_that_is_gone_twice_or_moved_is_noticed(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    for index in range(len(lines)):
        path.write_bytes(b"".join(lines[:index] + lines[index + 1 :]))
        records, said = damaged(path)
        assert (len(records), "1 line" in said) == (4, True), index
        path.write_bytes(b"".join([*lines[: index + 1], *lines[index:]]))
        records, said = damaged(path)
        assert (len(records), "stands twice" in said) == (5, True), index
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert "wrong place" in damaged(path)[1]


def test_a_journal_of_an_older_release_is_read_and_gone_on_with(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, 3)
    path.write_bytes(b"".join(encode_record(record) for record in read_journal(path)))
    seal_file(path).unlink()
    assert damaged(path)[1] == ""
    journal = Journal(path)
    journal.write("metrics", 40, values={"a": 1.0})
    journal.close()
    assert json.loads(path.read_bytes().splitlines()[-1])["line"] == 5
    records, said = damaged(path)
    assert ([record.get("seq") for record in records], said) == ([None, 1, 2, 3, 4], "")
    assert Journal(path).next_seq == 5


def test_numbers_of_lines_that_were_lost_are_not_given_out_again(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    journal = Journal(path)
    journal.note("warning", message="on")
    journal.close()
    records, said = damaged(path)
    assert len(records) == 4
    assert "2 lines before line 4" in said


@pytest.mark.parametrize("away", ["removed", "moved", "replaced"])
def test_a_journal_that_goes_away_is_noticed(tmp_path, away):
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(folder / "j.jsonl", clock=iter(range(100)).__next__)
    journal.write("metrics", 1, values={"a": 1.0})
    if away == "removed":
        shutil.rmtree(folder)
    elif away == "moved":
        folder.rename(tmp_path / "elsewhere")
    else:
        (folder / "j.jsonl").rename(folder / "other")
        (folder / "j.jsonl").write_text("")
    with pytest.raises(JournalFailed, match="removed or moved"):
        journal.write("metrics", 2, values={"a": 2.0})
    with pytest.raises(JournalFailed, match="removed or moved"):
        journal.sync()
    journal.close()
    assert folder.exists() == (away == "replaced"), "nothing is made there again"


def test_what_cannot_be_written_raises(tmp_path, monkeypatch):
    with pytest.raises(JournalFailed, match="cannot be opened"):
        Journal(tmp_path / "missing" / "j.jsonl")
    journal = Journal(tmp_path / "j.jsonl")
    journal.write("metrics", 1, values={"a": 1.0})

    def half_of_it(descriptor, data, real=os.write):
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half_of_it)
    with pytest.raises(JournalFailed, match="is the disk full"):
        journal.write("metrics", 2, values={"a": 2.0})
    journal.close()
    assert "is the disk full" in read_seal(tmp_path / "j.jsonl").failure, "there is room for the reason"
    monkeypatch.undo()
    assert Journal(tmp_path / "j.jsonl").next_seq == 2, "the torn line is removed when it is opened again"


def test_reading_from_a_position_at_any_byte(tmp_path):
    path = tmp_path / "j.jsonl"
    fill(path, 6)
    data = path.read_bytes()
    whole = [line + b"\n" for line in data.split(b"\n")[:-1]]
    ends = [sum(map(len, whole[: index + 1])) for index in range(len(whole))]
    for end in range(len(data) + 1):
        for max_bytes in (1, 50, 1 << 18):
            position, seen = 0, []
            while True:
                records, after = read_from(path, position, end, max_bytes)
                if after == position:
                    break
                seen, position = seen + records, after
            assert len(seen) == sum(own <= end for own in ends), (end, max_bytes)
            assert position == max([own for own in ends if own <= end], default=0)
