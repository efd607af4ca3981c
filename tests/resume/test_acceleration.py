"""Acceleration changes no bit of a run: switched on or off between attempts, over versions written before, where it diverges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rltrack import TrainingLoop, TrainingState
from rltrack.agents.sb3 import SB3Agent
from rltrack.checkpoints import CheckpointStore
from rltrack.journal import read_journal
from rltrack.runs import Root
from tests.resume.test_exact import fingerprint, records, stop_after
from tests.resume.test_same_as_learn import CASES, build
from tests.support.agents import NullObserver

sb3 = pytest.importorskip("stable_baselines3")
VERSIONS = Path(__file__).resolve().parents[1] / "data" / "format-1"
EACH_TIME = ("ppo", "a2c", "dqn", "sac", "td3", "recurrent-ppo")
NIGHTLY = ("dqn-3-envs", "ddpg", "tqc", "ppo-gsde")


def loop_for(case, name, acceleration):
    model, total = build(case)
    return TrainingLoop(
        SB3Agent(model, acceleration=acceleration),
        total_timesteps=total,
        checkpoint_freq=max(total // 5, 1),
        eval_freq=total // 2,
        eval_episodes=2,
        name=name,
        resume=True,
    )


def attempts(name):
    return [record for record in read_journal(Root().find(name).journal_file) if record["kind"] == "attempt"]


@pytest.mark.parametrize("case", [*EACH_TIME, *(pytest.param(case, marks=pytest.mark.nightly) for case in NIGHTLY)])
@pytest.mark.slow
def test_a_run_goes_on_exactly_when_acceleration_is_switched(case, own_root):
    assert {*EACH_TIME, *NIGHTLY} < set(CASES)
    whole = loop_for(case, "whole", "off")
    whole.run()
    expected = fingerprint(whole.live.agent.capture())
    for before, after in (("auto", "off"), ("off", "auto")):
        name = f"{before}-{after}"
        first = loop_for(case, name, before)
        stop_after(first, 0.4)
        assert first.run().state is TrainingState.STOPPED
        torch.manual_seed(99)
        second = loop_for(case, name, after)
        assert second.run().state is TrainingState.COMPLETED
        assert fingerprint(second.live.agent.capture()) == expected
        assert records(name) == records("whole")
        made = attempts(name)
        assert [record["exact"] for record in made] == [True, True]
        chosen = [record["choices"]["acceleration"]["chosen"] for record in made]
        assert (chosen[0] == "off", chosen[1] == "off") == (before == "off", after == "off")


def test_the_model_is_plain_again_after_a_training(own_root):
    loop = loop_for("ppo", "released", "auto")
    loop.run()
    model = loop.live.agent.model
    kept = [*vars(model).values(), *vars(model.policy).values(), *vars(model.env).values()]
    assert not [value for value in kept if type(value).__module__.startswith("rltrack.acceleration")]


def test_a_version_written_before_goes_on_with_the_same_bits():
    """The agent of `tests/data/format-1`, at 92 env steps."""
    store = CheckpointStore(VERSIONS)
    ends = []
    for acceleration in ("off", "auto"):
        model = sb3.DQN(
            "MlpPolicy", "CartPole-v1", seed=3, device="cpu", buffer_size=40, learning_starts=20, batch_size=8,
            policy_kwargs={"net_arch": [4]},
        )  # fmt: skip
        agent = SB3Agent(model, acceleration=acceleration)
        try:
            agent.allow_probe(False)
            agent.bind(None, 3)
            state = store.read(store.find("last"))
            agent.restore({part: value for part, value in state.items() if part != "loop"})
            agent.accelerate()
            assert (agent.describe_choices()["acceleration"]["chosen"] == "on") == (acceleration == "auto")
            for _ in range(30):
                agent.advance(NullObserver())
            ends.append(fingerprint(agent.capture()))
        finally:
            agent.release()
    assert ends[0] == ends[1]


@pytest.mark.parametrize("case", ["ppo", "dqn"])
def test_a_training_that_diverges_ends_at_the_same_iteration_with_the_same_message(case, own_root):
    ends = []
    for acceleration in ("off", "auto"):
        loop = loop_for(case, acceleration, acceleration)

        class Poison:
            def on_iteration_end(self, progress, iteration, model=loop.plan.agent.model):
                if progress.env_steps >= 200:
                    with torch.no_grad():
                        next(model.policy.parameters())[0] = float("nan")

        loop.add_hook(Poison())
        with pytest.raises(Exception) as raised:  # noqa: PT011 - SB3's or rltrack's, whichever sees it first
            loop.run()
        ends.append((type(raised.value), str(raised.value).replace(acceleration, ""), loop.progress.env_steps))
    assert ends[0] == ends[1]
