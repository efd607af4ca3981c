"""Whatever a program logs and whatever an evaluation gives: recorded as a number, or left out, and never the end of a training."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import rltrack
from rltrack.cli import run_command
from rltrack.errors import TrainingDiverged
from rltrack.evaluation.episodes import Evaluation
from rltrack.journal import read_journal
from rltrack.journal.values import as_floats, logged, number
from rltrack.runs import Root
from rltrack.tracking.metrics import MetricsTracker
from rltrack.tracking.sinks.base import Point
from rltrack.tracking.sinks.tensorboard import TensorBoardSink, finite
from rltrack.training.limits import Divergence
from rltrack.training.progress import has_converged
from tests.contract.test_sinks import new_report
from tests.support.servers import tensorboard_scalars

NAN, INF = math.nan, math.inf
SMALL = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 3}


class Breaks:
    def __float__(self):
        raise RuntimeError("not today")


NUMBERS = [
    (1.5, 1.5), (3, 3.0), (True, 1.0), (False, 0.0), (np.bool_(True), 1.0), (10**400, INF), (-(10**400), -INF), (1e300, 1e300),
    (Decimal("2.5"), 2.5), (Decimal("1e400"), INF), (Fraction(1, 4), 0.25), (Fraction(-(10**400)), -INF),
    (np.float32(0.5), 0.5), (np.float16(INF), INF), (np.int64(7), 7.0), (np.longdouble(2.5), 2.5), (np.uint64(2**64 - 1), 2.0**64),
    (np.longdouble("1e4000"), INF), (np.array(4.0), 4.0), (np.array([4.0]), 4.0), (np.array([[True]]), 1.0),
    (torch.tensor(5.0), 5.0), (torch.tensor([5]), 5.0), (torch.tensor(5.0, requires_grad=True), 5.0), (torch.tensor(True), 1.0),
    (-INF, -INF),
]  # fmt: skip
NO_NUMBERS = [
    "3", b"3", bytearray(b"3"), None, 1j, np.complex128(1 + 2j), np.array([1 + 0j]), torch.tensor(1j), np.array([1.0, 2.0]),
    np.array([]), torch.ones(2), torch.ones(()).to("meta"), [3.0], {}, Breaks(), Decimal("sNaN"), np.str_("3"), np.array("3"),
    np.datetime64("2020-01-01", "ns"), np.timedelta64(3, "ns"), np.ma.masked, object(), np.array([None]),
]  # fmt: skip


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("value", "expected"), NUMBERS)
def test_what_is_a_number(value, expected):
    found = number(value)
    assert type(found) is float
    assert found == expected


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number(value):
    assert number(value) is None


@pytest.mark.parametrize("value", [NAN, np.float32(NAN), Decimal("NaN"), torch.tensor(NAN), np.array([NAN])])
def test_nan_is_kept(value):
    found = number(value)
    assert found is not None
    assert math.isnan(found)


def test_who_does_not_get_a_value():
    exclude = {
        "a": ("mlflow",),
        "b": ("",),
        "c": ("stdout", "tensorboard", "csv"),
        "d": (["mlflow", "tensorboard"],),
        "e": "mlflow",
    }
    values, excluded = logged(dict.fromkeys("abcdef", 1), exclude)
    assert values == dict.fromkeys("abcdef", 1.0)
    assert excluded == {"mlflow": ["a", "d", "e"], "tensorboard": ["c", "d"]}
    assert logged({"time/fps": 1, "time": 2, "fps": 3}, {}, leave_out=("time/", "fps")) == ({"time": 2.0}, {})


def test_what_is_no_number_is_still_named_where_it_is_refused():
    assert as_floats({"a": 1, 2: 10**400, "c": "text"}) == {"a": 1.0, "2": INF, "c": "text"}


class Logs(BaseCallback):
    """Logs odd values, and keeps some from an output."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        for index, (value, _) in enumerate(NUMBERS):
            self.logger.record(f"number/{index:02d}", value)
        for index, value in enumerate(NO_NUMBERS):
            self.logger.record(f"none/{index:02d}", value)
        self.logger.record("kept/mlflow", 1.0, exclude="mlflow")
        self.logger.record("kept/tensorboard", 2.0, exclude="tensorboard")
        self.logger.record("kept/both", 3.0, exclude=("mlflow", "tensorboard", "stdout"))
        self.logger.record("kept/csv", 4.0, exclude=("stdout", "csv", "json", "log"))


def ppo(env="CartPole-v1", **more):
    return PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, **{**SMALL, **more})


def metrics(name):
    return [record for record in read_journal(Root().find(name).journal_file) if record["kind"] == "metrics"]


def through_the_loop(name):
    """A model whose own algorithm logs them, as a subclass of PPO would."""

    class Own(PPO):
        def train(self):
            super().train()
            callback = Logs()
            callback.model = self
            callback._on_rollout_end()

    model = Own("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, **SMALL)
    rltrack.TrainingLoop(model, total_timesteps=64, name=name).run()


def through_the_callback(name):
    ppo().learn(64, callback=[Logs(), rltrack.TrackingCallback(name)])


@pytest.mark.filterwarnings("ignore:.*has a learn")
@pytest.mark.parametrize("train", [through_the_loop, through_the_callback])
def test_odd_values_in_a_training_one_rule_for_both_ways(train):
    train("odd")
    record = next(record for record in metrics("odd") if "kept/csv" in record["values"])
    values = record["values"]
    for index, (_, expected) in enumerate(NUMBERS):
        assert values[f"number/{index:02d}"] == expected
    assert not any(key.startswith("none/") for key in values)
    assert {key for key in values if key.startswith("kept/")} == {
        f"kept/{to}" for to in ("mlflow", "tensorboard", "both", "csv")
    }
    excluded = {sink: {key for key in keys if key.startswith("kept/")} for sink, keys in record["excluded"].items()}
    assert excluded == {"mlflow": {"kept/mlflow", "kept/both"}, "tensorboard": {"kept/tensorboard", "kept/both"}}
    assert Root().find("odd").status().state == "completed"


def test_tensorboard_leaves_out_what_its_float32_cannot_hold(own_root):
    largest = float(np.finfo(np.float32).max)
    assert finite(
        {"a": NAN, "b": INF, "c": 1e300, "d": -1e300, "e": largest, "f": -largest, "g": 0.0, "h": 1e-300}
    ).keys() == set("efgh")
    report = new_report(own_root, "large")
    sink = TensorBoardSink({})
    sink.open(report)
    sink.write([Point({"large": 1e300, "fits": 1e30}, 1, 1_700_000_000.0)])
    sink.close()
    assert tensorboard_scalars(report.run).keys() == {"fits"}


class Odd(gym.Env):
    """Random observations; the reward is what `rewards` says; an episode has 20 steps."""

    rewards = staticmethod(lambda step: 1.0)
    observations = staticmethod(lambda step, own: own)
    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    steps = 0

    def _observe(self):
        return self.observations(self.steps, self.np_random.uniform(-1, 1, 3).astype(np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        self.steps += 1
        return self._observe(), self.rewards(self.steps), self.t >= 20, False, {}


def odd(**attributes):
    return type("OddEnv", (Odd,), {name: staticmethod(value) for name, value in attributes.items()})()


def test_a_first_evaluation_that_is_nan_is_not_the_best_one():
    """As `nan_first_evaluation.py` of the issue."""
    env = odd(rewards=lambda step: NAN if step == 7 else float(step // 100))
    loop = rltrack.TrainingLoop(
        ppo(odd()), eval_env=env, total_timesteps=256, eval_freq=32, eval_episodes=2, name="hiccup"
    )
    loop.add_hook(rltrack.EarlyStoppingHook(patience=3, min_improvement=0.01))
    statistics = loop.run()
    means = [evaluation.mean for evaluation in statistics.evaluations]
    assert math.isnan(means[0])
    assert statistics.best_evaluation is not None
    assert statistics.best_evaluation.mean == max(means[1:])
    assert statistics.reason == "all 256 env steps are done"
    assert Root().find("hiccup").store().find("best").score == max(means[1:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("reward", [NAN, INF, pytest.param(-INF, marks=pytest.mark.nightly), 1e308])
def test_one_bad_run_stops_no_listing(reward, capsys, tmp_path, monkeypatch):
    """As `nan_returns.py` of the issue."""
    monkeypatch.chdir(tmp_path)  # where `compare` and `export` write
    for name, value in (("bad", reward), ("good", 1.0)):
        env = odd(rewards=lambda step, value=value: value)
        loop = rltrack.TrainingLoop(
            ppo(odd()), eval_env=env, total_timesteps=64, eval_freq=32, eval_episodes=2, name=name
        )
        assert loop.run().state.value == "completed"
        loop.statistics.to_mapping()
    for line in ("runs", "runs --json", "show bad", "prune --below 0.5", "compare bad good", "plot bad", "export bad"):
        command = line.split()
        code = run_command(command)
        out = capsys.readouterr()
        assert code == 0, (command, out.err)
        assert "Traceback" not in out.err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_plots_of_numbers_that_cannot_be_drawn(tmp_path):
    tracker = MetricsTracker()
    for step in range(6):
        values = [NAN, INF, -INF, 1e308, -1e308, 1.0]
        tracker.log(
            {"train/loss": values[step], "eval/mean_reward": NAN, "rollout/ep_rew_mean": INF}, step, 1.7e9 + step
        )
        evaluation = Evaluation.of(step, [values[step]] * 2)
        tracker.observe({"kind": "evaluation", "time": 1.7e9, "step": step, **evaluation.to_record()})
        tracker.observe(
            {
                "kind": "episodes",
                "time": 1.7e9,
                "step": step,
                "steps": [step],
                "returns": [values[step]],
                "lengths": [1],
            }
        )
    assert tracker.plot(tmp_path)


def test_an_infinite_interval_has_not_converged():
    assert not has_converged(SimpleNamespace(interval=SimpleNamespace(low=INF)), 100.0)
    assert not has_converged(SimpleNamespace(interval=SimpleNamespace(low=NAN)), 100.0)
    assert has_converged(SimpleNamespace(interval=SimpleNamespace(low=101.0)), 100.0)


def spoil(model, value):
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(value)


class Spoils:
    """Makes weights useless at a moment of the training."""

    def __init__(self, model, moment, value):
        self.model, self.value = model, value
        setattr(self, moment, lambda *_: spoil(self.model, self.value))


@pytest.mark.parametrize("value", [NAN, INF, 1e30, 3e38])
@pytest.mark.parametrize("moment", ["on_training_start", "on_step", "on_iteration_end"])
@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.slow
def test_divergence_is_recognised_wherever_torch_refuses_it(value, moment, evaluates):
    """While collecting, while updating, and in predict during an evaluation."""
    model = ppo(odd())
    more = {"eval_freq": 32, "eval_episodes": 2, "eval_env": odd()} if evaluates else {}
    loop = rltrack.TrainingLoop(model, total_timesteps=128, name="diverged", **more)
    loop.add_hook(Spoils(model, moment, value))
    with pytest.raises(TrainingDiverged, match="earning rate"):
        loop.run()
    assert "TrainingDiverged" in Root().find("diverged").status().reason


def test_a_standard_deviation_of_zero_is_divergence_too():
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, n_epochs=1, **SMALL)
    loop = rltrack.TrainingLoop(model, total_timesteps=64, name="flat")

    class Flat(rltrack.TrainingHook):
        def on_training_start(self, progress):
            with torch.no_grad():
                model.policy.log_std.fill_(-1e9)

    loop.add_hook(Flat())
    with pytest.raises(TrainingDiverged, match="standard deviation 0") as caught:
        loop.run()
    assert isinstance(caught.value.__cause__, ValueError)


def test_observations_that_are_nan_are_named_as_a_cause():
    loop = rltrack.TrainingLoop(
        ppo(odd(observations=lambda step, own: own * (NAN if step > 5 else 1))), total_timesteps=64
    )
    with pytest.raises(TrainingDiverged, match="VecCheckNan"):
        loop.run()


def test_other_errors_are_what_they_were():
    def refuse(step):
        raise ValueError("nan: the valve is stuck")

    with pytest.raises(ValueError, match="valve") as caught:
        rltrack.TrainingLoop(ppo(odd(rewards=refuse)), total_timesteps=64).run()
    assert not isinstance(caught.value, TrainingDiverged)
    gpu = SimpleNamespace(is_capturable=True, implements=lambda name: True, capture_parts=lambda parts: {})
    divergence = Divergence(gpu)
    gpu.capture_parts = lambda parts: 1 / 0  # it answers nothing any more
    divergence.explain(5, RuntimeError("CUDA error: device-side assert triggered"))


def test_a_mask_of_infinities_that_never_changes_is_no_divergence():
    policy = {"mask": np.triu(np.full((2, 2), -np.inf), 1), "w": np.ones(2)}
    agent = SimpleNamespace(
        is_capturable=True, implements=lambda name: True, capture_parts=lambda _: {"policy": policy}
    )
    divergence = Divergence(agent)
    divergence.refuse_nonfinite_weights({"policy": policy}, 5)
    divergence.explain(5, ValueError("something else"))
    for name, value in (("mask", np.full((2, 2), NAN)), ("w", np.array([np.inf, 1.0]))):
        with pytest.raises(TrainingDiverged, match=f"env steps: {name}\\."):
            divergence.refuse_nonfinite_weights({"policy": {**policy, name: value}}, 5)


def test_torch_that_cannot_sample_is_divergence():
    parts = SimpleNamespace(is_capturable=False)
    for make in (
        lambda: torch.distributions.Categorical(logits=torch.tensor([NAN])),
        lambda: torch.distributions.Normal(0.0, -1.0),
    ):
        with pytest.raises(ValueError, match="invalid values") as caught:
            make()
        with pytest.raises(TrainingDiverged):
            Divergence(parts).explain(5, caught.value)
    with pytest.raises(RuntimeError) as failed:
        torch.distributions.Categorical(probs=torch.tensor([NAN, 1.0]), validate_args=False).sample()
    with pytest.raises(TrainingDiverged):
        Divergence(parts).explain(5, failed.value)


SWEEP = {
    "name": "bad-choice",
    "agent": {
        "algorithm": "PPO",
        "device": "cpu",
        "hyperparameters": {"n_steps": 64, "n_epochs": 1, "batch_size": 64, "policy_kwargs": {"activation_fn": "ReLU"}},
    },
    "environment": {"id": "CartPole-v1"},
    "training": {"total_timesteps": 256, "eval_freq": 128},
    "evaluation": {"episodes": 2},
    "tracking": {"video": False},
    "sweep": {
        "parameters": {"learning_rate": {"choice": [1e20, 0.001]}, "gamma": {"choice": [0.9, 0.99]}},
        "trials": 4,
        "sampler": "grid",
    },
}  # fmt: skip


@pytest.mark.slow
def test_a_bad_choice_fails_and_the_others_complete(tmp_path, capsys):
    """As `sweep_with_a_bad_choice.yaml` of the issue."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    for _ in range(2):
        assert run_command(["sweep", str(file)]) == 0
        out = capsys.readouterr().out
        assert "2 complete" in out
        assert "2 failed" in out
        assert "TrainingDiverged" in out
    assert run_command(["sweep", "--name", "bad-choice", "--show"]) == 0
    best = yaml.safe_load((Root().study_folder("bad-choice") / "best.yaml").read_text())
    assert best["agent"]["hyperparameters"]["learning_rate"] == 0.001


@pytest.fixture
def search(tmp_path):
    from rltrack.studies.search import Search
    from rltrack.studies.space import read_sweep

    def open_search(**more):
        file = tmp_path / "sweep.yaml"
        base = {
            **SWEEP,
            "sweep": {"parameters": {"gamma": {"float": [0.9, 0.99]}}, "trials": 3, "sampler": "random", **more},
        }
        file.write_text(yaml.safe_dump(base))
        found, section = read_sweep(file)
        return Search("nan", Root()).open({**found, "name": None}, section)

    return open_search


def finished(run, mean):
    from rltrack.journal import Journal

    run.path.mkdir(parents=True, exist_ok=True)
    journal = Journal(run.journal_file)
    journal.note("configuration", run_id=run.name, identity={}, agent={})
    journal.write("evaluation", 1, **Evaluation.of(1, [mean]).to_record())
    journal.note(
        "end", state="completed", reason="done", env_steps=1, episodes=0, seconds=0.0, mean_return=mean, goes_on=False
    )
    journal.close()
    return run


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_trial_whose_objective_is_no_number_failed(search, value):
    from rltrack.studies.sweep import trial_rows, write_best
    from rltrack.studies.trials import run_trial

    found = search()
    values = [value, 3.0, value]
    for index, mean in enumerate(values):
        result = run_trial(found, index, lambda config, hook, mean=mean: finished(Root().create(config.name, ""), mean))
        assert result.state == ("complete" if mean == 3.0 else "failed")
    assert found.unfinished() == []
    rows = trial_rows(found)
    assert [row["state"] for row in rows] == ["complete", "failed", "failed"]
    assert str(value) in rows[1]["reason"]
    assert found.best().number == 1
    assert write_best(found) is not None


@pytest.mark.parametrize("pruner", ["none", "median", "halving", "hyperband"])
def test_an_evaluation_that_is_nan_is_no_reason_to_prune(search, pruner):
    from rltrack.studies.trials import ReportHook
    from rltrack.training.progress import TrainingProgress

    found = search(pruner={"median": {"n_startup_trials": 0}} if pruner == "median" else pruner)
    trial, _ = found.begin(0)
    hook, progress = ReportHook(trial, found.configs(0, {})[0].training, []), TrainingProgress()
    for mean in (NAN, INF, -INF):
        hook.on_evaluation_end(progress, Evaluation.of(128, [mean]))
    assert progress.stop_reason is None
    assert found.trials()[0].intermediate_values == {}
    hook.on_evaluation_end(progress, Evaluation.of(128, [2.0]))
    assert found.trials()[0].intermediate_values == {1: 2.0}


def test_a_trial_that_breaks_does_not_keep_the_others_from_running(search, monkeypatch):
    from rltrack.studies import sweep

    found = search()

    def train_here(search, *, console):
        def train(config, hook):
            if config.name.endswith("0000"):
                raise RuntimeError("CUDA out of memory")
            return finished(Root().create(config.name, ""), 1.0)

        return train

    monkeypatch.setattr(sweep, "train_here", train_here)
    said: list[str] = []
    (left,) = sweep.sweep_here(found, jobs=1, console=False, notify=said.append)
    assert (left.number, left.stopped) == (0, False)
    assert "CUDA out of memory" in left.why
    assert found.unfinished() == [0]
