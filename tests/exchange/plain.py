"""Acts as a program of Stable-Baselines3's users does; as a script it runs where rltrack cannot be imported."""

import importlib
import sys

import numpy as np
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


def actions_of(model, given, normalize=None):
    """The actions of a model for the observations and masks that are given, with its normalisation, or the one that is given."""
    normalize = model.get_vec_normalize_env() if normalize is None else normalize
    state, actions = None, []
    for index, observation in enumerate(given["observations"]):
        more = {"action_masks": given["masks"][index]} if "masks" in given else {}
        seen = observation[None] if normalize is None else normalize.normalize_obs(observation[None])
        start = np.array([index == 0])
        action, state = model.predict(seen, state=state, episode_start=start, deterministic=True, **more)
        actions.append(action)
    return np.array(actions)


def plain_actions(algorithm, folder, env_id, normalized):
    """The actions of the files in a folder, for the observations and masks in its ``given.npz``."""
    model = getattr(stable_baselines3, algorithm, None) or getattr(importlib.import_module("sb3_contrib"), algorithm)
    model = model.load(f"{folder}/model.zip")
    normalize = VecNormalize.load(f"{folder}/vecnormalize.pkl", make_vec_env(env_id)) if normalized else None
    return actions_of(model, np.load(f"{folder}/given.npz"), normalize)


if __name__ == "__main__":
    for case in sys.argv[1:]:
        algorithm, folder, env_id, normalized = case.split("::")
        np.save(f"{folder}/actions.npy", plain_actions(algorithm, folder, env_id, normalized == "True"))
    assert not any(name.split(".")[0] == "rltrack" for name in sys.modules)
