from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from rltrack import MetricsTracker, TrainingProgress
from rltrack.agents.protocol import EpisodeInfo
from rltrack.evaluation.episodes import Evaluation
from rltrack.journal import Journal
from rltrack.tracking.plots import draw_run
from rltrack.training.reporter import format_duration


@pytest.fixture
def journal_file(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", clock=iter(np.arange(1e3, 2e3)).__next__)
    rng = np.random.default_rng(0)
    for step in range(100, 2100, 100):
        journal.write(
            "episodes", step, returns=[float(step) + rng.normal(), 1.0], lengths=[5, 6], steps=[step - 50, step]
        )
        journal.write("metrics", step, values={"train/loss": 1 / step, "time/fps": 100.0 + step, "x": math.nan})
        if step % 500 == 0:
            journal.write("evaluation", step, **Evaluation.of(step, rng.normal(step, 10, 20)).to_record())
    journal.close()
    return tmp_path / "journal.jsonl"


def test_history_aggregates_and_latest(journal_file):
    metrics = MetricsTracker.from_journal(journal_file)
    series = metrics.history("train/loss")
    assert series.steps.tolist() == list(range(100, 2100, 100))
    assert series.values[3] == 1 / 400
    aggregate = metrics.aggregate("train/loss", window=2)
    assert aggregate["count"] == 2
    assert aggregate["mean"] == pytest.approx((1 / 1900 + 1 / 2000) / 2)
    assert metrics.latest("time/fps") == 2100.0
    assert metrics.latest("nothing") is None
    assert math.isnan(metrics.aggregate("x")["mean"])
    assert "eval/mean_reward" in metrics
    with pytest.raises(KeyError, match="Known: eval/"):
        metrics.history("nothing")


def test_exports_hold_every_value_once(journal_file, tmp_path):
    metrics = MetricsTracker.from_journal(journal_file)
    metrics.export_csv(tmp_path / "e" / "m.csv")
    metrics.export_csv(tmp_path / "e" / "m.csv")
    with open(tmp_path / "e" / "m.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 * 3 + 4 * 7
    assert len({(row["key"], row["step"]) for row in rows}) == len(rows)
    assert float(next(row["value"] for row in rows if row["key"] == "train/loss" and row["step"] == "300")) == 1 / 300
    data = json.loads(metrics.export_json(tmp_path / "m.json").read_text(), parse_constant=pytest.fail)
    assert data["metrics"]["x"]["value"][0] == "NaN"
    assert len(data["episodes"]["return"]) == 40
    assert len(data["evaluations"]) == 4


def test_logging_by_hand():
    metrics = MetricsTracker()
    for step in range(5):
        metrics.log({"a": step**2}, step)
    assert metrics.history("a").values.tolist() == [0, 1, 4, 9, 16]


def test_plots_are_pictures_with_something_on_them(journal_file, tmp_path):
    from matplotlib.image import imread

    metrics = MetricsTracker.from_journal(journal_file)
    resources = MetricsTracker()
    for number in range(5):
        resources.log(
            {"system/process_memory_megabytes": 300.0 + number, "system/process_cpu_percentage": 99.0},
            number,
            10.0 * number,
        )
    paths = draw_run(metrics, tmp_path / "plots", "a run", resources)
    assert [path.name for path in paths] == ["learning_curve.png", "losses.png", "throughput.png", "resources.png"]
    for path in paths:
        picture = imread(path)
        assert picture.shape[1] > 400
        assert len(np.unique(picture[::4, ::4].reshape(-1, picture.shape[2]), axis=0)) > 20
    assert draw_run(MetricsTracker(), tmp_path / "none") == []


def test_progress_measures_speed_over_the_last_seconds():
    progress = TrainingProgress()
    for second in range(21):
        progress.env_steps = 100 * second if second < 10 else 1000 + 500 * (second - 10)
        progress.remaining = 1 - progress.env_steps / 12_000
        progress.update_performance_stats(float(second))
    assert progress.steps_per_second == pytest.approx(500)
    assert progress.eta_seconds == pytest.approx((12_000 - 6_000) / 500)
    for _ in range(150):
        progress.add_episode(EpisodeInfo(2.0, 3, 1))
    assert progress.mean_return == 2.0
    assert len(progress.recent_returns) == 100
    assert progress.episodes == 150


def test_speed_leaves_evaluations_out():
    progress = TrainingProgress()
    progress.update_performance_stats(0.0)
    measured = []
    for iteration in range(3):
        progress.env_steps += 100 * (iteration + 1)
        progress.update_performance_stats(10.0 * iteration + 1)  # a second of training, nine of an evaluation
        measured.append(progress.steps_per_second)
        progress.leave_out(9.0)
    assert measured == pytest.approx([100, 150, 200])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (math.nan, "–"), (0, "0s"), (59.9, "59s"), (187, "3m 07s"), (7500, "2h 05m"), (277000, "3d 04h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
