"""The same training in less time: `accelerate` replaces the Python around torch's kernels in a model of Stable-Baselines3.

For small networks most of a training is Python. The modules here do the same operations of torch and numpy in the same order, so
that every bit of the result stays, and leave out modules, distributions and validation around them:

- `networks`, `distributions`, `actor_critic`, `continuous`: forward passes;
- `flat`, `optimizers`: parameters in one tensor, and one operation for all of them;
- `environments`: a step of DummyVecEnv;
- `on_policy_collection`, `off_policy_collection`, `rollout_data`, `replay_data`: experience;
- `update`, `update_ppo`, `update_a2c`, `update_dqn`, `update_sac`, `update_td3`: updates;
- `parts`: recognises what a model consists of, and installs the replacements with `patches`; `watching` notices hooks;
- `verification`, `trial`: compare them with what they replace, at each start.
"""

from rltrack.acceleration.accelerating import accelerate
from rltrack.acceleration.report import Part, Report

__all__ = ["Part", "Report", "accelerate"]
