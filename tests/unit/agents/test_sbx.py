"""SBX's algorithms: driven like SB3's, their JAX weights in the version. Skipped without the extra."""

from __future__ import annotations

import numpy as np
import pytest

sbx = pytest.importorskip("sbx", reason="the extra sbx is not installed")

from rltrack import TrainingLoop, load_agent  # noqa: E402
from rltrack.agents import sbx_state  # noqa: E402
from rltrack.training.trainer import Trainer  # noqa: E402

CASES = [("sbx.PPO", "CartPole-v1", {"n_steps": 64}), ("sbx.DQN", "CartPole-v1", {"learning_starts": 50}),
         *((f"sbx.{name}", "Pendulum-v1", {"learning_starts": 50}) for name in ("SAC", "TQC", "TD3", "CrossQ"))]  # fmt: skip


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(a, b) for key in one for a, b in zip(one[key], other[key], strict=True)
    )


@pytest.mark.parametrize(("algorithm", "env", "options"), CASES)
def test_same_as_learn_and_back_from_a_version(algorithm, env, options):
    model_class = getattr(sbx, algorithm.partition(".")[2])
    reference = model_class("MlpPolicy", env, seed=0, **options)
    reference.learn(256)
    model = model_class("MlpPolicy", env, seed=0, **options)
    TrainingLoop(model, total_timesteps=256, eval_freq=128, eval_episodes=2, tracking=False).run()
    assert same(sbx_state.capture(reference), sbx_state.capture(model))

    trainer = Trainer(
        {
            "name": "x",
            "agent": {"algorithm": algorithm, "hyperparameters": options},
            "environment": {"id": env},
            "training": {"total_timesteps": 128, "eval_freq": None},
        }
    )
    trainer.train()
    loaded = load_agent("x", version="last")
    trained = trainer.loop.live.agent.model
    assert same(sbx_state.capture(loaded), sbx_state.capture(trained))
