from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltrack.errors import JournalFailed
from rltrack.tracking.journal import Journal, decode_record, encode_record, read_from, read_journal, read_tail


def fill(path, n=20):
    journal = Journal(path)
    journal.note("configuration", run_id="x")
    for step in range(1, n + 1):
        journal.write("metrics", step * 10, values={"a": step / 3, "b": math.nan if step % 2 else math.inf})
    journal.close()


def test_one_line_a_record_with_fixed_time_and_numbers(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", clock=lambda: 12.5)
    journal.note("warning", message="late")
    journal.write("metrics", 10, values={"x": 1.0})
    journal.write("metrics", 20, values={"x": -math.inf})
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
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
    journal.resume_from(11, exact=True)
    for step in range(11, 21):
        journal.write("metrics", step * 10, values={"a": step / 3})
    assert (tmp_path / "j.jsonl").read_bytes() == before
    journal.write("metrics", 210, values={"a": 7.0})
    assert list(read_journal(tmp_path / "j.jsonl"))[-1]["seq"] == 21


def test_an_inexact_resume_drops_up_to_the_high_water_mark(tmp_path):
    fill(tmp_path / "j.jsonl")
    journal = Journal(tmp_path / "j.jsonl")
    journal.resume_from(11, exact=False)
    for step in (110, 150, 200, 205, 230):
        journal.write("metrics", step, values={"a": 0.0})
    records = [record for record in read_journal(tmp_path / "j.jsonl") if record["kind"] == "metrics"]
    assert [record["step"] for record in records[20:]] == [205, 230]
    assert [record["seq"] for record in records] == list(range(1, 23))


def test_the_last_number_is_found_behind_many_others(tmp_path):
    fill(tmp_path / "j.jsonl", 3)
    journal = Journal(tmp_path / "j.jsonl")
    for _ in range(3000):
        journal.note("warning", message="x" * 100)
    journal.close()
    assert Journal(tmp_path / "j.jsonl").next_seq == 4
    assert read_tail(tmp_path / "j.jsonl")[-1]["kind"] == "warning"


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    fill(tmp_path / "j.jsonl", 3)
    lines = (tmp_path / "j.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "j.jsonl").write_bytes(lines[0] + b"{broken\n" + lines[1])
    with pytest.raises(ValueError, match="line 2"):
        list(read_journal(tmp_path / "j.jsonl"))


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
