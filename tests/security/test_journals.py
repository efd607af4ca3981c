"""Journals that somebody else wrote, or that were damaged: read right, or refused with words."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rltrack import damage
from rltrack.cli import run_command
from rltrack.console.runs import run_details, run_rows
from rltrack.errors import RltrackError
from rltrack.journal import Journal, read_from, read_journal, read_tail
from rltrack.runs import Root, RunDirectory, RunStatus
from rltrack.runs.history import RunHistory
from rltrack.tracking.metrics import MetricsTracker
from rltrack.tracking.report import RunReport
from tests.security.test_versions import EDITS, edited
from tests.support.runs import append, made_run

EVALUATION = {
    "kind": "evaluation", "seq": 4, "step": 40, "returns": [1.0, 2.0], "lengths": [3, 4], "mean": 1.5, "std": 0.5, "median": 1.5,
    "iqm": 1.5, "interval": [1.0, 2.0],
}  # fmt: skip
METRICS = {"kind": "metrics", "seq": 4, "step": 40, "values": {"train/loss": 1.0}}
EPISODES = {"kind": "episodes", "seq": 4, "step": 40, "steps": [38, 40], "returns": [1.0, 2.0], "lengths": [2, 2]}
ATTEMPT = {"kind": "attempt", "number": 2, "exact": True, "environments": None, "host": "h"}
END = {"kind": "end", "state": "completed", "reason": "", "env_steps": 40, "mean_return": 1.0, "goes_on": False}
DECISION = {
    "kind": "decision",
    "seq": 4,
    "step": 40,
    "decision": "stop",
    "reason": "enough",
    "numbers": {"a": [1, None]},
}


def without(record, field):
    return {key: value for key, value in record.items() if key != field}


GOOD = [EVALUATION, METRICS, EPISODES, ATTEMPT, END, DECISION, {"kind": "of a newer rltrack", "anything": [{}]},
        EVALUATION | {"mean": "NaN", "interval": ["-Infinity", "Infinity"]}, METRICS | {"values": {"a": "NaN", "b": 1, "c": True}},
        END | {"mean_return": None}, END | {"mean_return": "NaN"}, ATTEMPT | {"environments": {"tier": "replay", "reason": "x"}},
        {"kind": "configuration", "run_id": "r", "identity": {}, "agent": {}, "policy": None}]  # fmt: skip

BAD = {
    "a step as a text": METRICS | {"step": "40"},
    "a negative step": METRICS | {"step": -40},
    "a step beyond 64 bits": METRICS | {"step": 2**63},
    "a step as a truth value": METRICS | {"step": True},
    "a step as NaN": METRICS | {"step": "NaN"},
    "a number as a list": METRICS | {"seq": [4]},
    "number zero": METRICS | {"seq": 0},
    "a number without a step": {"kind": "warning", "message": "x", "seq": 4},
    "a time as a text": METRICS | {"time": "yesterday"},
    "a time as NaN": METRICS | {"time": "NaN"},
    "a kind as a list": METRICS | {"kind": ["metrics"]},
    "no kind": without(METRICS, "kind"),
    "values with a text": METRICS | {"values": {"train/loss": "low"}},
    "values with nothing": METRICS | {"values": {"train/loss": None}},
    "values with a list": METRICS | {"values": {"train/loss": [1.0]}},
    "values as a list": METRICS | {"values": [1.0]},
    "no values": without(METRICS, "values"),
    "values nested deep": METRICS | {"values": {"a": json.loads("[" * 200 + "]" * 200)}},
    "excluded as a list": METRICS | {"excluded": ["mlflow"]},
    "returns with a text": EVALUATION | {"returns": [1.0, "high"]},
    "an interval of one": EVALUATION | {"interval": [1.0]},
    "an interval of texts": EVALUATION | {"interval": ["a", "b"]},
    "a mean as a list": EVALUATION | {"mean": [1.5]},
    "no mean": without(EVALUATION, "mean"),
    "infos with a text": EVALUATION | {"infos": {"is_success": [1.0, "yes"]}},
    "infos of episodes that are no lists": EPISODES | {"infos": {"is_success": 1.0}},
    "lengths as fractions": EVALUATION | {"lengths": [1.5, 2]},
    "episodes of which one lacks its return": EPISODES | {"returns": [1.0]},
    "steps of episodes as texts": EPISODES | {"steps": ["38", "40"]},
    "exact as a text": ATTEMPT | {"exact": "yes"},
    "an attempt that does not say": without(ATTEMPT, "exact"),
    "a tier as a list": ATTEMPT | {"environments": {"tier": ["capture"]}},
    "choices without a reason": ATTEMPT | {"choices": {"device": {"chosen": "cpu"}}},
    "missing as a text": ATTEMPT | {"missing": "records"},
    "versions as a list": ATTEMPT | {"versions": ["torch"]},
    "a state as a list": END | {"state": ["completed"]},
    "an end that does not say": without(END, "goes_on"),
    "a mean return as a text": END | {"mean_return": "high"},
    "numbers as a list": DECISION | {"numbers": [1]},
    "a reason as a mapping": DECISION | {"reason": {}},
    "an id as a number": {"kind": "configuration", "run_id": 5},
    "a warning without words": {"kind": "warning"},
    "an error in a list": {"kind": "error", "error": ["x"], "message": "y"},
    "a checkpoint of no version": {"kind": "checkpoint", "step": 4},
    "a score as a text": {"kind": "checkpoint", "step": 4, "version": "v1", "score": "best"},
}  # fmt: skip

LINES = {
    "no JSON": b"pickle",
    "a list": b"[1]",
    "a number": b"5",
    "nothing": b"",
    "no UTF-8": b'{"kind": "\xff"}',
    "nested deep": b"[" * 100_000,
    "nested deep and closed": b'{"kind":"metrics","time":1,"step":1,"values":' + b'{"a":' * 900 + b"1" + b"}" * 901,
    "two records": b'{"kind": "warning"}{"kind": "warning"}',
    "zeros, as after a power cut": b"\0" * 512,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A root with one run: what it holds is fsynced, which copying it is not."""
    return made_run(tmp_path_factory.mktemp("template"), "one").root


def copy_of(template, root):
    shutil.copytree(template, root)
    return Root(root).find("one")


def damage_of(run):
    with damage.collected() as found:
        assert len(list(read_journal(run.journal_file))) == 6
    return " ".join(found.new)


def through_every_reader(run: RunDirectory):
    """Only errors that rltrack raises on purpose come out."""
    size = run.journal_file.stat().st_size

    def report():
        report = RunReport(run, {})
        report.catch_up(size, 0)
        return report.tags(), report.description(), report.params()

    for read in (
        run.status,
        run.configuration_record,
        run.attempts,
        lambda: list(read_journal(run.journal_file)),
        lambda: read_tail(run.journal_file),
        lambda: read_from(run.journal_file, 0, size),
        lambda: RunHistory.read(run.journal_file).missing,
        lambda: run_details(run),
        lambda: MetricsTracker.from_journal(run.journal_file).to_mapping(),
        lambda: MetricsTracker(run.journal_file).keys(),
        report,
        lambda: Journal(run.journal_file).close(),
    ):
        try:
            read()
        except RltrackError:
            continue


@pytest.mark.parametrize("record", GOOD)
def test_what_training_writes_is_read(template, own_root, record):
    run = copy_of(template, own_root)
    append(run, **record)
    assert list(read_journal(run.journal_file))[-1]["kind"] == record["kind"]
    run.status()
    through_every_reader(run)
    assert run_command(["show", "one"]) == 0


@pytest.mark.parametrize("attack", BAD)
@pytest.mark.slow
def test_a_record_that_no_training_wrote_is_named(template, own_root, attack, capsys):
    run = copy_of(template, own_root)
    append(run, **BAD[attack])
    assert "line 7, which is damaged" in damage_of(run)
    assert run.status().state == "completed", "a line that is no record does not count"
    through_every_reader(run)
    drawn = [["plot", "one"]] if attack == next(iter(BAD)) else []
    for words in (["show", "one"], ["export", "one"], *drawn):
        assert run_command(words) == 1
        said = capsys.readouterr().err
        assert "line 7" in said
        assert "Traceback" not in said
    assert run_command(["runs"]) == 1, "the line is among the last ones"


@pytest.mark.parametrize("attack", LINES)
def test_a_line_that_is_none_is_named(template, own_root, attack):
    run = copy_of(template, own_root)
    with open(run.journal_file, "ab") as file:
        file.write(LINES[attack] + b"\n")
    assert "line 7, which is damaged" in damage_of(run)
    assert run.status().state == "completed"
    through_every_reader(run)


def test_markup_in_texts_is_text(own_root, capsys):
    run = made_run(own_root, "one")
    for record in (
        ATTEMPT | {"choices": {"[/red]": {"chosen": "[bold", "reason": "[/]"}}},
        DECISION | {"decision": "[/x]", "reason": "[/y]"},
        {"kind": "warning", "message": "[/z]"},
        END | {"state": "[/state]", "reason": "[/reason]"},
    ):
        append(run, **record)
    assert run_command(["show", "one"]) == 0
    assert run_command(["runs"]) == 0
    said = capsys.readouterr().out
    for text in ("[/red]", "[/x]", "[/z]", "[/state]"):
        assert text in said


def test_one_run_that_cannot_be_read_hides_no_other(own_root):
    bad = made_run(own_root, "bad")
    made_run(own_root, "good")
    bad.journal_file.unlink()
    bad.journal_file.mkdir()
    assert {row["name"]: row["state"] for row in run_rows(Root(own_root))} == {"bad": "unreadable", "good": "completed"}
    made_run(own_root, "worse").store().folder.joinpath("v000009").write_text("")
    rows = {row["name"]: row["state"] for row in run_rows(Root(own_root))}
    assert rows == {"bad": "unreadable", "good": "completed", "worse": "completed"}


@pytest.mark.parametrize("value", ["low", None, [1.0], {"a": 1}, b"x"])
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(TypeError, match="Only numbers can be recorded"):
        journal.write("metrics", 1, values={"train/loss": value})
    journal.write("metrics", 1, values={"train/loss": math.nan})
    assert [record["seq"] for record in read_journal(tmp_path / "journal.jsonl")] == [1]


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(edits=EDITS)
@example(edits=[("cut", 0, b"x")])
@example(edits=[("insert", 0, b"\n")])
def test_bytes_changed_anywhere(template, tmp_path_factory, edits):
    run = copy_of(template, tmp_path_factory.mktemp("journal") / "root")
    run.journal_file.write_bytes(edited(run.journal_file.read_bytes(), edits))
    status = run.status()
    assert isinstance(status, RunStatus)
    assert isinstance(status.state, str)
    assert isinstance(status.env_steps, int)
    assert status.mean_return is None or isinstance(status.mean_return, float | int)
    found = list(read_journal(run.journal_file))
    assert all(isinstance(record["kind"], str) and math.isfinite(record["time"]) for record in found)
    numbers = [record["seq"] for record in found if "seq" in record]
    assert RunHistory.read(run.journal_file).missing or numbers == list(range(1, len(numbers) + 1))
    assert RunHistory.read(run.journal_file).missing or found == list(read_journal(template / "runs/one/journal.jsonl"))
    through_every_reader(run)
    shutil.rmtree(run.root)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["kind", "time", "seq", "step", "values", "mean", "state", "exact", "interval", "returns", "steps"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["metrics", "end", "evaluation", "NaN"]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    )
)  # fmt: skip
def test_any_record(template, tmp_path_factory, record):
    run = copy_of(template, tmp_path_factory.mktemp("journal") / "root")
    with open(run.journal_file, "ab") as file:
        file.write(json.dumps(record).encode() + b"\n")
    through_every_reader(run)
    shutil.rmtree(run.root)
