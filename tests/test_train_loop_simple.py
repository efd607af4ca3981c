"""TrainingLoop with an agent that is not SB3: neither torch nor SB3 is needed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import pytest

from rltrack import (
    EarlyStoppingHook,
    LoggingHook,
    MetricsTracker,
    ProgressReporter,
    TrainingLoop,
    TrainingProgress,
    TrainingState,
    TrainingStatistics,
    TrainingStrategy,
    create_training_loop,
)
from rltrack.errors import (
    CheckpointFailed,
    ConfigurationError,
    EvaluationUnavailable,
    MemoryLimitExceeded,
    NameTaken,
    TrainingDiverged,
)
from rltrack.journal import read_journal
from rltrack.runs import Root
from rltrack.training.live import Due
from rltrack.training.marks import Mark
from tests.support.agents import TINY, RecordingHook, ScriptedAgent, TinyEnv


def loop_of(agent=None, env=TINY, **options):
    options.setdefault("tracking", False)
    return TrainingLoop(agent or ScriptedAgent(), env, **options)


# ---- the seed's snippets ----


def test_progress_as_in_the_seed():
    progress = TrainingProgress()
    progress.update_performance_stats(time.time())
    progress.update_resource_usage()
    assert progress.memory_mb > 1


def test_strategies_hooks_and_defaults_as_in_the_seed():
    class CustomHook:
        def __init__(self):
            self.seen = []

        def on_training_start(self, progress):
            self.seen.append("start")

        def on_step(self, progress, step_info):
            self.seen.append(step_info.env_steps)

        def on_episode_end(self, progress, episode_info):
            self.seen.append(round(episode_info.episode_return))

    training_loop = TrainingLoop(
        agent=ScriptedAgent([1.0]), env=TINY, strategy=TrainingStrategy.ADAPTIVE, total_timesteps=100, tracking=False
    )
    hook = CustomHook()
    training_loop.add_hook(hook)
    statistics = training_loop.run()
    assert isinstance(statistics, TrainingStatistics)
    assert statistics.env_steps == 100
    assert hook.seen[0] == "start"
    assert hook.seen.count(5) == 1 + sum(round(value) == 5 for value in statistics.episode_returns)


def test_agent_and_env_given_to_run():
    training_loop = TrainingLoop(memory_limit_mb=50_000.0, convergence_threshold=4.0, tracking=False)
    assert training_loop.settings.training.total_timesteps == 100_000
    statistics = training_loop.run(ScriptedAgent([1.0]), TINY)
    assert statistics.is_converged
    assert "converged" in statistics.reason
    assert statistics.env_steps == 5_000, "the first evaluation, a twentieth of the budget"


@pytest.mark.slow
def test_create_from_the_seeds_dictionary(tmp_path, delivery, forked):
    config = {
        "strategy": "adaptive",
        "total_timesteps": 400,
        "eval_freq": 100,
        "checkpoint_freq": 100,
        "memory_limit_mb": 50_000.0,
        "enable_early_stopping": True,
        "tensorboard_log_dir": str(tmp_path / "tb"),
    }
    training_loop = create_training_loop(ScriptedAgent(), TINY, config)
    statistics = training_loop.run()
    assert statistics.state is TrainingState.COMPLETED
    assert training_loop.wait_for_tracking(timeout=120)
    assert list((tmp_path / "tb" / statistics.run).glob("events.out.tfevents.*"))


def test_stop_pause_resume_from_another_thread():
    class Events:
        def __init__(self):
            self.iterated, self.paused, self.resumed = threading.Event(), threading.Event(), threading.Event()
            self.pauses = 0

        def on_iteration_end(self, progress, iteration_info):
            self.iterated.set()

        def on_pause(self, progress):
            self.pauses += 1
            self.paused.set()

        def on_resume(self, progress):
            self.iterated.clear()
            self.resumed.set()

    events, seen = Events(), []
    loop = loop_of(total_timesteps=10**9, hooks=[events])

    def drive():
        assert events.iterated.wait(30)
        loop.pause()
        assert events.paused.wait(30)
        before = loop.progress.env_steps
        time.sleep(0.3)
        seen.append((before, loop.progress.env_steps, loop.progress.state))
        loop.resume()
        assert events.resumed.wait(30)
        seen.append(events.iterated.wait(30))
        loop.stop("enough")

    thread = threading.Thread(target=drive)
    thread.start()
    statistics = loop.run()
    thread.join()
    assert seen == [(seen[0][0], seen[0][0], TrainingState.PAUSED), True]
    assert statistics.state is TrainingState.STOPPED
    assert statistics.reason == "enough"
    assert statistics.env_steps > seen[0][0]
    assert events.pauses == 1


def test_stop_before_run_trains_nothing():
    agent = ScriptedAgent()
    loop = loop_of(agent, total_timesteps=100)
    loop.stop()
    assert loop.run().env_steps == 0
    assert agent.iteration == 0


def test_pause_before_run_waits():
    agent = ScriptedAgent()
    loop = loop_of(agent, total_timesteps=100)
    loop.pause()
    threading.Timer(0.3, lambda: (seen.append(agent.iteration), loop.resume())).start()
    seen: list = []
    assert loop.run().env_steps == 100
    assert seen == [0]


class Clock:
    """The steady clock, which can be put forward."""

    def __init__(self, monkeypatch):
        self.ahead, self._real = 0.0, time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: self._real() + self.ahead)


def test_paused_time_does_not_count(monkeypatch):
    clock, paused = Clock(monkeypatch), threading.Event()

    class Pauses:
        def on_pause(self, progress):
            paused.set()

    loop = loop_of(total_timesteps=1000, hooks=[Pauses()])

    def drive():
        paused.wait()
        clock.ahead += 10_000.0
        loop.resume()

    loop.pause()
    threading.Thread(target=drive).start()
    assert loop.run().seconds < 10_000.0
    assert clock.ahead == 10_000.0


# ---- budgets and marks ----


def test_episodic_ends_within_one_iteration():
    statistics = loop_of(strategy="episodic", total_episodes=7).run()
    assert 7 <= statistics.episodes < 7 + 2  # an iteration of 10 steps holds two episodes
    assert len(statistics.episode_returns) == statistics.episodes


def test_other_budgets_are_caps():
    statistics = loop_of(strategy="episodic", total_episodes=1000, total_timesteps=50).run()
    assert statistics.env_steps == 50
    assert "env steps" in statistics.reason
    assert loop_of(total_timesteps=10**6, total_episodes=4).run().episodes == 4


@pytest.mark.parametrize("strategy", ["timestep_based", "episodic", "mixed", "adaptive"])
def test_max_seconds_caps_every_strategy(strategy):
    loop = loop_of(strategy=strategy, total_timesteps=10**9, total_episodes=10**9, max_seconds=0.3)
    statistics = loop.run()
    assert "max_seconds" in statistics.reason
    assert statistics.env_steps < 10**9


def test_mixed_ends_at_whichever_is_first_and_its_schedule_follows():
    agent = ScriptedAgent()
    statistics = loop_of(agent, strategy="mixed", total_timesteps=1000, total_episodes=10).run()
    assert statistics.episodes == 10
    assert statistics.env_steps == 50
    assert agent.remaining[-1] == pytest.approx(0.0)
    assert sorted(agent.remaining, reverse=True) == agent.remaining
    agent = ScriptedAgent()
    assert loop_of(agent, strategy="mixed", total_timesteps=40, total_episodes=1000).run().env_steps == 40
    assert agent.remaining[-1] == pytest.approx(0.0)


def test_schedule_follows_the_whole_budget_over_chunks():
    agent = ScriptedAgent()
    loop_of(agent, total_timesteps=100, eval_freq=20, checkpoint_freq=30).run()
    assert list(dict.fromkeys(agent.remaining)) == [1.0] + [1.0 - step / 100 for step in range(1, 101)]


def test_evaluations_and_checkpoints_at_their_marks(own_root):
    hook = RecordingHook()
    loop = TrainingLoop(
        ScriptedAgent(), TINY, total_timesteps=100, eval_freq=25, checkpoint_freq=40, hooks=[hook], name="marks"
    )
    loop.run()
    assert [at for name, at in hook.calls if name == "on_evaluation_end"] == [30, 50, 80, 100]
    resumable = [version.env_steps for version in Root().find("marks").store().versions() if version.is_resumable]
    assert resumable == [80, 100]
    checkpoints = [
        record for record in read_journal(own_root / "runs/marks/journal.jsonl") if record["kind"] == "checkpoint"
    ]
    assert [record["step"] for record in checkpoints if record["resumable"]] == [40, 80, 100]


def test_checkpoints_by_the_clock(monkeypatch):
    clock, captured_at = Clock(monkeypatch), []

    class Captured(ScriptedAgent):
        def capture(self):
            captured_at.append(self.total)
            return super().capture()

    def before(iteration):
        clock.ahead += 1_000.0

    agent = Captured()
    agent.before_iteration = before
    loop_of(agent, total_timesteps=350, checkpoint_seconds=9_500.0).run()
    assert captured_at == [100, 200, 300, 350]


# ---- the adaptive strategy ----


def decisions(skills, total=400, **options):
    agent = ScriptedAgent(skills)
    loop = loop_of(agent, strategy="adaptive", total_timesteps=total, eval_freq=40, eval_episodes=4, **options)
    statistics = loop.run()
    return agent, loop, statistics, [record["decision"] for record in loop.metrics.decisions]


def test_adaptive_improving_waits_longer():
    agent, loop, _, names = decisions([iteration / 10 for iteration in range(1, 100)])
    assert set(names[1:]) == {"improving"}
    intervals = [record["numbers"]["eval_interval"] for record in loop.metrics.decisions]
    assert intervals[0] == 40
    assert intervals[1] == 60
    assert max(intervals) <= 160
    assert agent.scales == []


@pytest.mark.slow
def test_adaptive_plateau_looks_closer_and_lowers_the_rate_a_bounded_number_of_times():
    agent, loop, _, names = decisions([1.0], total=2000)
    assert names.count("plateau") > 3
    assert agent.scales == [0.5, 0.25, 0.125]
    assert loop.metrics.decisions[-1]["numbers"]["eval_interval"] == 10


def test_adaptive_collapse_brings_the_best_version_back():
    rising, fallen = [1.0] * 8, [-3.0]
    agent, loop, _, names = decisions([*rising, *fallen, *[None] * 100], total=200)
    collapse = next(record for record in loop.metrics.decisions if record["decision"] == "collapse")
    assert collapse["numbers"]["high"] < collapse["numbers"]["best_low"]
    assert agent.skill == 1.0
    assert agent.scales[0] == 0.5
    assert agent.total == loop.progress.env_steps, "counters go on"
    assert "steady" in names[names.index("collapse") + 1 :]


@pytest.mark.slow
def test_adaptive_collapse_is_bounded():
    agent, loop, _, names = decisions([*[1.0] * 4, *[-3.0] * 200], total=2000)
    assert names.count("collapse") > 3
    assert agent.scales.count(0.125) == 1
    restores = [record for record in loop.metrics.decisions if "comes back" in record["reason"]]
    assert len(restores) == 3


def test_adaptive_stops_when_converged():
    _, _, statistics, names = decisions([0.0, 0.2, 0.9, 1.0], convergence_threshold=4.5)
    assert names[-1] == "converged"
    assert statistics.state is TrainingState.COMPLETED
    assert statistics.env_steps < 400


def test_adaptive_refuses_an_agent_that_cannot_go_back():
    class Bare(ScriptedAgent):
        scale_learning_rate = None

    with pytest.raises(ConfigurationError, match="scale_learning_rate"):
        loop_of(Bare(), strategy="adaptive", total_timesteps=100).run()


# ---- hooks, early stopping, convergence ----


def test_hooks_hear_everything_in_order():
    hook = RecordingHook()
    loop_of(total_timesteps=20, eval_freq=10, hooks=[hook]).run()
    names = hook.names()
    assert names[0] == "on_training_start"
    assert names[-1] == "on_training_end"
    assert names.count("on_step") == 20
    assert names.count("on_episode_end") == 4
    assert names.count("on_iteration_end") == 2
    assert names.index("on_evaluation_end") < len(names) - 1 - names[::-1].index("on_checkpoint")


def test_a_hook_can_ask_to_stop():
    class Enough:
        def on_iteration_end(self, progress, iteration_info):
            if progress.env_steps >= 30:
                progress.request_stop("the hook has seen enough")

    statistics = loop_of(total_timesteps=1000, hooks=[Enough()]).run()
    assert statistics.env_steps == 30
    assert statistics.reason == "the hook has seen enough"
    assert statistics.state is TrainingState.COMPLETED


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (type("Typo", (), {"on_epsiode_end": lambda self, progress, info: None})(), "Did you mean 'on_episode_end'"),
        (type("Short", (), {"on_step": lambda self, progress: None})(), "def on_step\\(self, progress, step_info\\)"),
        (type("Nothing", (), {})(), "no hook method"),
        (LoggingHook, "is a class"),
    ],
)
def test_wrong_hooks_are_refused_when_added(hook, message):
    with pytest.raises(ConfigurationError, match=message):
        loop_of(total_timesteps=10).add_hook(hook)


def test_early_stopping_by_patience_and_min_improvement():
    rising = [step / 10 for step in range(1, 6)]
    loop = loop_of(ScriptedAgent([*rising, *[0.5] * 1000]), total_timesteps=10_000, eval_freq=10)
    loop.add_hook(EarlyStoppingHook(patience=4, min_improvement=0.2))
    statistics = loop.run()
    assert "early stopping" in statistics.reason
    assert statistics.env_steps == 50 + 40
    assert EarlyStoppingHook().patience == 10


def test_early_stopping_as_a_setting_brings_its_own_evaluations():
    loop = loop_of(ScriptedAgent([0.5]), total_timesteps=2000, enable_early_stopping=True, patience=2)
    statistics = loop.run()
    assert statistics.env_steps == 300
    assert [evaluation.env_steps for evaluation in statistics.evaluations] == [100, 200, 300]


@pytest.mark.parametrize("values", [{"patience": 0}, {"min_improvement": -1}, {"min_improvement": float("nan")}])
def test_early_stopping_refuses_nonsense(values):
    with pytest.raises(ConfigurationError):
        EarlyStoppingHook(**values)


# ---- limits and failures ----


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_loss_stops_at_once(loss, own_root):
    hook = RecordingHook()
    agent = ScriptedAgent(losses=[0.1, 0.1, loss])
    loop = TrainingLoop(agent, TINY, total_timesteps=1000, checkpoint_freq=10, name="nan", hooks=[hook])
    with pytest.raises(TrainingDiverged, match="train/loss"):
        loop.run()
    assert agent.iteration == 3
    assert "on_error" in hook.names()
    run = Root().find("nan")
    assert run.status().state == "failed"
    assert [version.env_steps for version in run.store().versions()] == [10, 20]
    written = [
        record["values"]["train/loss"] for record in read_journal(run.journal_file) if record["kind"] == "metrics"
    ]
    assert np.isnan(written[-1]) == np.isnan(loss)
    assert written[-1] == loss or np.isnan(loss)


def test_broken_weights_never_become_a_version(own_root):
    loop = TrainingLoop(
        ScriptedAgent(weights_break_at=3), TINY, total_timesteps=1000, checkpoint_freq=10, name="weights"
    )
    with pytest.raises(TrainingDiverged, match="skill"):
        loop.run()
    assert [version.env_steps for version in Root().find("weights").store().versions()] == [10, 20]


def test_memory_limit_writes_a_checkpoint_and_says_so(own_root):
    loop = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=10**7, memory_limit_mb=1.0, name="memory")
    with pytest.raises(MemoryLimitExceeded, match="memory_limit_mb is 1"):
        loop.run()
    run = Root().find("memory")
    assert run.status().state == "failed"
    assert run.store().find("last").is_resumable


def test_a_failing_checkpoint_stops_or_goes_on(own_root, monkeypatch):
    from rltrack.checkpoints import store

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_bytes", full)
    with pytest.raises(CheckpointFailed, match="No space left"):
        TrainingLoop(ScriptedAgent(), TINY, total_timesteps=100, checkpoint_freq=10, name="full").run()
    loop = TrainingLoop(
        ScriptedAgent(), TINY, total_timesteps=100, checkpoint_freq=50, name="on", on_failure="continue"
    )
    with pytest.raises(CheckpointFailed, match="No space left"):  # of the last version, without which the end is lost
        loop.run()
    assert loop.progress.env_steps == 100
    warnings = [record for record in read_journal(own_root / "runs/on/journal.jsonl") if record["kind"] == "warning"]
    assert "checkpoint at 50" in warnings[0]["message"]


def test_an_error_in_the_agent_is_recorded_and_raised(own_root):
    def fail(iteration):
        if iteration == 3:
            raise RuntimeError("the simulator died")

    agent = ScriptedAgent()
    agent.before_iteration = fail
    with pytest.raises(RuntimeError, match="simulator"):
        TrainingLoop(agent, TINY, total_timesteps=100, name="dies").run()
    status = Root().find("dies").status()
    assert status.state == "failed"
    assert status.reason == "RuntimeError: the simulator died"


# ---- configuration errors: nothing is started, nothing is left ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_timestep": 10}, "Did you mean 'total_timesteps'"),
        ({"strategy": "episodic"}, "needs total_episodes"),
        ({"strategy": "mixed", "total_timesteps": 10}, "needs total_episodes"),
        ({"strategy": "timestep_based"}, "needs total_timesteps"),
        ({"strategy": "adaptiv", "total_timesteps": 10}, "adaptive"),
        ({"total_timesteps": -5}, "greater than or equal to 1"),
        ({"total_timesteps": 10, "memory_limit_mb": float("nan")}, "memory_limit_mb"),
        ({"total_timesteps": 10, "eval_freq_episodes": 5}, "belongs to strategy 'mixed'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigurationError, match=message):
        TrainingLoop(ScriptedAgent(), TINY, **options)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a..b", "x" * 200])
def test_bad_names_leave_nothing(name, own_root):
    with pytest.raises(ConfigurationError, match="not allowed"):
        TrainingLoop(ScriptedAgent(), TINY, total_timesteps=10, name=name).run()
    assert not any(path.is_dir() for path in (own_root / "runs").glob("*"))


def test_missing_parts_are_named():
    with pytest.raises(ConfigurationError, match="no agent"):
        TrainingLoop(total_timesteps=10, tracking=False).run()
    with pytest.raises(ConfigurationError, match="no environment"):
        TrainingLoop(ScriptedAgent(), total_timesteps=10, tracking=False).run()
    with pytest.raises(ConfigurationError, match="advance, predict, set_schedule"):
        TrainingLoop(type("Half", (), {"bind": print})(), TINY, total_timesteps=10, tracking=False).run()


def test_without_an_environment_to_evaluate_in():
    loop = loop_of(env=TinyEnv(), total_timesteps=50, eval_freq=10)
    assert loop.run().evaluations == []
    with pytest.raises(EvaluationUnavailable, match="eval_env"):
        loop_of(env=TinyEnv(), total_timesteps=50, enable_early_stopping=True).run()
    loop = loop_of(env=TinyEnv(), total_timesteps=50, eval_freq=10, eval_env=TinyEnv())
    assert len(loop.run().evaluations) == 5


def test_evaluation_uses_the_same_seeds_each_time_and_others_than_training():
    loop = loop_of(ScriptedAgent([1.0]), total_timesteps=40, eval_freq=10)
    statistics = loop.run()
    first, *others = statistics.evaluations
    assert all(evaluation.returns == first.returns for evaluation in others)
    assert len(set(first.returns)) == 20


def test_evaluation_leaves_random_streams_alone():
    class Drawing(ScriptedAgent):
        def predict(self, observation, **inputs):
            np.random.rand(3)
            return super().predict(observation, **inputs)

        def advance(self, observer):
            self.drawn.append(np.random.rand())
            return super().advance(observer)

    def drawn(**options):
        np.random.seed(5)
        agent = Drawing()
        agent.drawn = []
        loop_of(agent, total_timesteps=50, **options).run()
        return agent.drawn

    assert drawn() == drawn(eval_freq=10, checkpoint_freq=10)


# ---- going on ----


def test_a_stopped_run_goes_on_and_a_finished_one_is_read(own_root):
    class StopAt:
        def __init__(self, loop):
            self.loop = loop

        def on_iteration_end(self, progress, iteration_info):
            if progress.env_steps == 50:
                self.loop.stop()

    first = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=100, eval_freq=20, name="on")
    first.add_hook(StopAt(first))
    assert first.run().state is TrainingState.STOPPED

    with pytest.raises(NameTaken, match="resume=True"):
        TrainingLoop(ScriptedAgent(), TINY, total_timesteps=100, eval_freq=20, name="on").run()
    with pytest.raises(NameTaken, match="total_timesteps: 100 → 200"):
        TrainingLoop(ScriptedAgent(), TINY, total_timesteps=200, eval_freq=20, name="on", resume=True).run()

    agent = ScriptedAgent()
    second = TrainingLoop(agent, TINY, total_timesteps=100, eval_freq=20, name="on", resume=True)
    statistics = second.run()
    assert statistics.state is TrainingState.COMPLETED
    assert agent.iteration == 10
    assert statistics.env_steps == agent.total == 100
    assert [evaluation.env_steps for evaluation in statistics.evaluations] == [20, 40, 60, 80, 100]
    steps = [record["step"] for record in read_journal(Root().find("on").journal_file) if record["kind"] == "metrics"]
    assert steps == list(range(10, 101, 10))

    agent = ScriptedAgent()
    third = TrainingLoop(agent, TINY, total_timesteps=100, eval_freq=20, name="on", resume=True)
    assert third.run().reason == "all 100 env steps are done"
    assert third.was_finished
    assert agent.iteration == 0
    assert len(third.statistics.evaluations) == 5


def test_max_seconds_can_be_raised_to_go_on(own_root):
    slow = ScriptedAgent()
    slow.before_iteration = lambda iteration: time.sleep(0.05)
    TrainingLoop(slow, TINY, total_timesteps=100, name="slow", max_seconds=0.1).run()
    assert not Root().find("slow").status().is_finished
    statistics = TrainingLoop(
        ScriptedAgent(), TINY, total_timesteps=100, name="slow", max_seconds=60, resume=True
    ).run()
    assert statistics.env_steps == 100


def test_a_hook_ends_a_run_for_good_whatever_it_says(own_root):
    class Says:
        def on_episode_end(self, progress, episode_info):
            progress.request_stop("good enough within max_seconds")

    loop = loop_of(total_timesteps=100, name="enough", max_seconds=60, tracking=True)
    loop.add_hook(Says())
    assert loop.run().state is TrainingState.COMPLETED
    assert Root().find("enough").status().is_finished


def test_a_loop_is_used_once():
    loop = loop_of(total_timesteps=10)
    loop.run()
    with pytest.raises(ConfigurationError, match="Make a new one"):
        loop.run()


def test_tracking_off_leaves_nothing(own_root, tmp_path):
    loop = loop_of(total_timesteps=50, eval_freq=10)
    loop.run()
    assert not own_root.exists()
    assert loop.wait_for_tracking() is True
    assert isinstance(loop.metrics, MetricsTracker)
    assert loop.metrics.keys()


def test_env_instance_and_reporter(tmp_path):
    reporter = ProgressReporter(tensorboard_log_dir=tmp_path / "tb", log_file=tmp_path / "log.txt", console=False)
    loop = loop_of(env=gym.make(TINY), total_timesteps=50, eval_freq=10, reporter=reporter)
    loop.run()
    assert "evaluation at 50 env steps" in (tmp_path / "log.txt").read_text()
    assert list((tmp_path / "tb").glob("events.*"))


def test_neither_torch_nor_sb3_is_loaded():
    code = (
        "import sys\n"
        "from tests.support.agents import ScriptedAgent, TINY\n"
        "from rltrack import TrainingLoop\n"
        "TrainingLoop(ScriptedAgent(), TINY, total_timesteps=50, eval_freq=10, tracking=False).run()\n"
        "found = {'torch', 'stable_baselines3', 'mlflow', 'prefect'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_verbs_one_by_one(own_root):
    """As a flow calls them: prepare, start, chunk by chunk, finish."""
    agent = ScriptedAgent()
    live = TrainingLoop(agent, TINY, total_timesteps=100, name="verbs").prepare()
    with pytest.raises(ConfigurationError, match=r"start\(\)"):
        live.train_chunk(Mark(env_steps=50))
    live.start()
    live.train_chunk(Mark(env_steps=50))
    live.train_chunk(Mark(env_steps=50))
    assert agent.total == 50, "a finished chunk does nothing"
    assert live.checkpoint().env_steps == 50
    live.control.stop("enough")
    assert live.due() is Due.END
    live.finish()
    live.close()
    assert Root().find("verbs").status().state == "stopped"


def test_a_run_that_was_killed_after_its_early_stop_does_not_go_on(own_root):
    """The decision to stop is part of the version, as the end may not have been recorded."""

    def loop():
        return TrainingLoop(
            ScriptedAgent([0.5]), TINY, total_timesteps=5000, eval_freq=10, enable_early_stopping=True, patience=2,
            name="early", resume=True,
        )  # fmt: skip

    class Killed:
        def on_training_end(self, progress):
            raise KeyboardInterrupt

    first = loop()
    first.add_hook(Killed())
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert Root().find("early").store().find("last").env_steps == 30
    statistics = loop().run()
    assert statistics.env_steps == 30
    assert "early stopping" in statistics.reason
