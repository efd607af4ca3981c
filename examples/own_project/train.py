"""The project's own training script: VecNormalize and EvalCallback, as Stable-Baselines3's documentation has them."""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tank.callbacks import HighestLevel
from tank.env import make_tank
from tank.extractor import Difference

from rltrack import TrackingCallback  # the first of the two lines for rltrack


def main() -> None:
    """Train, and evaluate on the way."""
    env = VecNormalize(make_vec_env(make_tank, n_envs=4, seed=1), norm_reward=False)
    eval_env = VecNormalize(make_vec_env(make_tank, n_envs=1, seed=100), training=False, norm_reward=False)
    policy_kwargs = {"features_extractor_class": Difference, "features_extractor_kwargs": {"features_dim": 24}}
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=4, policy_kwargs=policy_kwargs, seed=1)
    evaluation = EvalCallback(eval_env, eval_freq=1000, n_eval_episodes=10, verbose=0)
    callbacks = [HighestLevel(), evaluation]
    callbacks.append(TrackingCallback(name="tank"))  # the second
    model.learn(8192, callback=callbacks)


if __name__ == "__main__":
    main()
