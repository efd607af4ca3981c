"""The benchmark of many runs: its copies of a run are runs like any other."""

from __future__ import annotations

import math

import pytest

from rltrack.benchmarks.scale import _journal_of_another, as_markdown, measure_scale
from rltrack.journal import Journal, read_journal
from rltrack.runs import Root


def test_the_journal_of_a_copy_is_good(tmp_path, capsys):
    agent = {"hyperparameters": {"learning_rate": 0.1}}
    journal = Journal(tmp_path / "first.jsonl")
    journal.note("configuration", run_id="one", identity={"agent": agent}, agent=agent)
    journal.write("metrics", 1, values={"rollout/ep_rew_mean": float("nan")})
    journal.close()
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(_journal_of_another(journal.path, 0.2))
    configuration, metrics = read_journal(copy)
    assert configuration["run_id"] != "one"
    assert configuration["agent"]["hyperparameters"]["learning_rate"] == 0.2
    assert math.isnan(metrics["values"]["rollout/ep_rew_mean"])
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.nightly
def test_two_runs_are_timed(tmp_path, capsys):
    pytest.importorskip("optuna")
    [row] = measure_scale(tmp_path, [2], print)
    assert all(seconds > 0 for seconds in row.seconds.values())
    assert "| rltrack runs |" in as_markdown([row])
    firsts = [next(read_journal(run.journal_file)) for run in Root(tmp_path).runs()]
    assert len({record["run_id"] for record in firsts}) == 2
    assert "damaged" not in capsys.readouterr().err
