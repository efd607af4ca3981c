"""The project's own training script: VecNormalize and EvalCallback, as Stable-Baselines3's documentation has them."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tank.callbacks import HighestLevel
from tank.env import make_tank
from tank.extractor import Difference

from rltrack import TrainingLoop  # the first of two lines for rltrack


def build() -> tuple[PPO, list[Any]]:
    """Return the model, and callbacks."""
    env = VecNormalize(make_vec_env(make_tank, n_envs=4, seed=1), norm_reward=False)
    eval_env = VecNormalize(make_vec_env(make_tank, n_envs=1, seed=100), training=False, norm_reward=False)
    policy_kwargs = {"features_extractor_class": Difference, "features_extractor_kwargs": {"features_dim": 24}}
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=4, policy_kwargs=policy_kwargs, seed=1)
    return model, [HighestLevel(), EvalCallback(eval_env, eval_freq=1000, n_eval_episodes=10, verbose=0)]


def main() -> None:
    """Train, and evaluate on the way."""
    model, callbacks = build()
    # the second line; it was: model.learn(8192, callback=callbacks)
    TrainingLoop(
        model, callbacks=callbacks, make_env=make_tank, total_timesteps=8192, eval_freq=2048, name="tank", resume=True
    ).run()


if __name__ == "__main__":
    main()
