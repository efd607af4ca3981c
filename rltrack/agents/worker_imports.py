"""Imported by the process that forks environments' worker processes, so that each worker starts without its imports."""

import os

import numpy as np
import stable_baselines3.common.vec_env.subproc_vec_env  # noqa: F401

os.register_at_fork(after_in_child=np.random.seed)  # else the workers' process-wide streams would be the same
