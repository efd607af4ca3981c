"""The benchmark of many runs: its copies of a run are runs like any other."""

from __future__ import annotations

import pytest

from rltrack.benchmarks.scale import as_markdown, measure_scale
from rltrack.journal import read_journal
from rltrack.runs import Root


@pytest.mark.nightly
def test_two_runs_are_timed(tmp_path, capsys):
    pytest.importorskip("optuna")
    [row] = measure_scale(tmp_path, [2], print)
    assert all(seconds > 0 for seconds in row.seconds.values())
    assert "| rltrack runs |" in as_markdown([row])
    firsts = [next(read_journal(run.journal_file)) for run in Root(tmp_path).runs()]
    assert len({record["run_id"] for record in firsts}) == 2
    assert "damaged" not in capsys.readouterr().err
