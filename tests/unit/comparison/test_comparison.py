"""Runs side by side: groups by seed, scores, curves, and the page."""

from __future__ import annotations

import html.parser
import json

import numpy as np
import pytest

from rltrack.cli import run_command
from rltrack.comparison.page import write_comparison
from rltrack.comparison.study import _settings, compare_runs, study_of
from rltrack.console.studies import print_comparison
from rltrack.errors import ConfigurationError
from rltrack.evaluation.episodes import Evaluation
from rltrack.journal import Journal
from rltrack.runs import Root, RunDirectory


def written(
    root: Root,
    name: str,
    *,
    seed: int,
    rate: float,
    scores,
    step: int = 100,
    threshold=None,
    env="CartPole-v1",
    reported=False,
    **environment,
) -> RunDirectory:
    """A run's journal as training writes it; its evaluations have these mean returns, 20 episodes each."""
    run = root.create(name, "")
    journal = Journal(run.journal_file)
    identity = {"seed": seed, "agent": {"algorithm": "PPO", "hyperparameters": {"learning_rate": rate}},
                "environment": {"id": env, **environment}, "training": {"convergence_threshold": threshold}}  # fmt: skip
    if reported:  # as TrackingCallback writes it
        del identity["environment"]
        identity["agent"]["environment"] = env
    journal.note("configuration", run_id=name, identity=identity, agent={"algorithm": "PPO"}, policy=None)
    journal.note("attempt", number=1, resumed_from=None, env_steps=0, exact=True, environments={}, host="h", pid=1)
    for index, score in enumerate(scores):
        rng = np.random.default_rng([seed, index])
        evaluation = Evaluation.of((index + 1) * step, score + rng.normal(0, 1, 20), [10] * 20)
        journal.write("evaluation", step=evaluation.env_steps, **evaluation.to_record())
    journal.note("end", state="completed", reason="done", env_steps=len(scores) * step, episodes=1, seconds=1.0,
                 mean_return=scores[-1], goes_on=False)  # fmt: skip
    journal.close()
    return run


@pytest.fixture
def root(own_root):
    root = Root(own_root)
    for seed in range(3):
        written(root, f"slow-{seed}", seed=seed, rate=0.001, scores=[10, 50, 90 + seed])
        written(root, f"fast-{seed}", seed=seed, rate=0.01, scores=[20, 120, 110 + seed], step=80)
    written(root, "lone", seed=0, rate=0.1, scores=[5, 6])
    return root


def test_seeds_of_one_training_are_a_group(root):
    study = compare_runs([root.find(name) for name in root.names()], threshold=100)
    groups = {tuple(row["runs"]): row for row in study.rows()}
    assert set(groups) == {("fast-0", "fast-1", "fast-2"), ("lone",), ("slow-0", "slow-1", "slow-2")}
    fast, slow = groups["fast-0", "fast-1", "fast-2"], groups["slow-0", "slow-1", "slow-2"]
    assert fast["seeds"] == [0, 1, 2]
    assert fast["final_iqm"] == pytest.approx(111, abs=0.7)
    assert fast["best_iqm"] == pytest.approx(120, abs=0.7)
    low, high = fast["final_interval"]
    assert low < fast["final_iqm"] < high
    assert high - low < 1.5
    assert (fast["steps_to_threshold"], slow["steps_to_threshold"]) == (160, None)
    assert slow["optimality_gap"] == pytest.approx(9, abs=0.5)
    assert list(study.differences) == ["learning_rate"]
    assert study.threshold == 100
    assert not study.by_seed  # one group has a single seed


@pytest.mark.slow
def test_of_very_many_groups_the_best_are_compared(own_root, capsys):
    root = Root(own_root)
    for number in range(30):
        written(root, f"run-{number:02d}", seed=0, rate=0.001 * (number + 1), scores=[10, (number * 7) % 30])
    study = compare_runs(root.runs())
    assert len(study.groups) == 12
    assert len(study.improvement) == 12
    shown, left_out = [group.iqm() for group in study.groups], [group.iqm() for group in study.others]
    assert min(shown) > max(left_out)
    assert left_out == sorted(left_out, reverse=True)
    assert [group.runs[0].run.name for group in study.groups] == sorted(
        group.runs[0].run.name for group in study.groups
    )
    assert len(study.differences["learning_rate"]) == 12
    assert len(study.to_record()["left_out"]) == 18
    assert run_command(["compare", *root.names(), "--no-log", "--output", str(own_root / "page")]) == 0
    assert "12 best of 30" in capsys.readouterr().out
    assert "12 best of 30" in (own_root / "page" / "comparison.html").read_text()


def test_with_enough_seeds_they_are_what_is_compared(root):
    study = compare_runs([root.find(f"{kind}-{seed}") for kind in ("slow", "fast") for seed in range(3)])
    assert study.by_seed
    assert [group.label for group in study.groups] == ["learning_rate=0.001 (3 seeds)", "learning_rate=0.01 (3 seeds)"]
    assert study.improvement[1][0][0] == 1.0
    assert study.improvement[0][1][0] == 0.0
    assert study.improvement[0][0][0] == 0.5
    assert study.threshold == 475.0  # what the environment counts as solved


def test_a_study_alone_is_called_by_what_its_runs_names_share(root):
    study = study_of([root.find(f"slow-{seed}") for seed in range(3)])
    assert [group.label for group in study.groups] == ["slow (3 seeds)"]


def test_curves_are_aligned_on_env_steps(root):
    fast = compare_runs([root.find(name) for name in ("fast-0", "fast-1", "fast-2", "lone")]).groups[0].curve()
    assert fast.steps.tolist() == [80, 160, 240]
    assert fast.mean == pytest.approx([20, 120, 111], abs=0.7)
    assert (fast.low <= fast.mean).all()
    assert (fast.mean <= fast.high).all()
    root_runs = [
        written(root, f"other-{seed}", seed=seed, rate=9.0, scores=[0, 100], step=100 * (seed + 1)) for seed in (0, 1)
    ]
    curve = compare_runs([*root_runs, root.find("lone")]).groups[0].curve()
    assert curve.steps.tolist() == [200]  # where both have something to say
    assert curve.mean[0] == pytest.approx(50, abs=1)


def test_what_cannot_be_compared(root):
    with pytest.raises(ConfigurationError, match="Name two or more"):
        compare_runs([root.find("lone"), root.find("lone")])
    blank = written(root, "blank", seed=0, rate=1.0, scores=[1])
    lines = blank.journal_file.read_text().splitlines()
    blank.journal_file.write_text("\n".join(line for line in lines if '"evaluation"' not in line) + "\n")
    with pytest.raises(ConfigurationError, match="blank"):
        compare_runs([root.find("lone"), blank])


class Outside(html.parser.HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key == "src" and value.startswith("data:image/png;base64,"):
                self.images += 1
            elif key == "src" or (key == "href" and tag == "link"):
                self.fetched.append(value)


def test_the_page_needs_nothing_else(root, tmp_path):
    study = compare_runs([root.find(name) for name in root.names()])
    files = write_comparison(study, tmp_path / "out", "http://127.0.0.1:5000/#/compare-runs?runs=%5B%5D")
    assert [file.name for file in files] == [
        "comparison.html", "learning_curves.png", "score_distributions.png", "improvement.png", "comparison.json",
    ]  # fmt: skip
    page = Outside()
    page.feed(files[0].read_text())
    assert page.images == 3
    assert page.fetched == []
    assert "learning_rate" in files[0].read_text()
    assert len(json.loads(files[-1].read_text())["groups"]) == 3


def test_runs_whose_agent_reports_the_environment_have_the_same_one(root):
    written(root, "callback", seed=0, rate=0.1, scores=[5, 300], reported=True)
    written(root, "other", seed=0, rate=0.1, scores=[5, 300], env="Acrobot-v1", reported=True)
    assert compare_runs([root.find("lone"), root.find("callback")]).warning is None
    assert "(CartPole-v1, Acrobot-v1)" in compare_runs([root.find("lone"), root.find("other")]).warning


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"kwargs": {"sutton_barto_reward": True}}, "environment.kwargs"),
        ({"wrappers": ["scale:Times10"]}, "environment.wrappers"),
    ],
)
def test_other_arguments_or_wrappers_are_a_warning_for_programs_too(root, other, key):
    written(root, "other", seed=0, rate=0.1, scores=[5, 300], **other)
    warning = compare_runs([root.find("lone"), root.find("other")]).to_record()["warning"]
    assert f"({key}): their returns have no common scale" in warning


def test_returns_without_a_common_scale_are_drawn_apart(root, tmp_path):
    written(root, "walker", seed=0, rate=0.1, scores=[-5, 300], env="BipedalWalker-v3")
    files = write_comparison(compare_runs([root.find("lone"), root.find("walker")]), tmp_path / "out")
    names = [file.name for file in files if file.suffix == ".png"]
    assert names == ["learning_curve_1.png", "learning_curve_2.png"]
    page = files[0].read_text()
    assert "no common scale" in page
    assert "Probability of improvement" not in page


@pytest.mark.slow
def test_on_the_command_line(root, tmp_path, capsys):
    assert run_command(["compare", "slow-0", "slow-1", "fast-0", "--output", str(tmp_path / "out"), "--no-log"]) == 0
    out = capsys.readouterr().out
    assert "final IQM" in out
    assert "learning_rate" in out
    assert "comparison.html" in out
    assert run_command(["compare", "slow-0", "fast-0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compared"] == "episodes"
    assert run_command(["compare", "slow-0"]) == 2


def test_numbers_stay_whole_in_a_narrow_window(root, capsys, monkeypatch):
    found = compare_runs([root.find(name) for name in ("slow-0", "slow-1", "fast-0")])
    shown = []
    for columns in ("400", "30"):
        monkeypatch.setenv("COLUMNS", columns)
        print_comparison(found)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.slow
def test_it_is_in_mlflow_once(root, tmp_path):
    from mlflow.tracking import MlflowClient

    for _ in range(2):
        assert run_command(["compare", "slow-0", "fast-0", "--output", str(tmp_path / "out")]) == 0
    client = MlflowClient(f"sqlite:///{root.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("comparisons")
    [run] = client.search_runs([experiment.experiment_id])
    assert "comparison.html" in [file.path for file in client.list_artifacts(run.info.run_id)]


@pytest.mark.parametrize("given", [{}, {"gamma": 0.9}])
def test_arguments_are_compared_with_their_defaults_and_once(given):
    identity = {"seed": 1, "agent": {"algorithm": "PPO", "hyperparameters": given}}
    resolved = {"identity": identity, "agent": {"hyperparameters": {"gamma": 0.9}}}
    assert _settings(resolved) == {"agent.algorithm": "PPO", "gamma": 0.9}
