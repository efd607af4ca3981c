"""Simulators that live outside Python and offer their state: MuJoCo and the Arcade Learning Environment.

They stay where they are, with everything that points to them; only their contents are taken and put back.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from rltrack.errors import NotCapturable

_KINDS = {
    ("mujoco._structs", "MjData"): "MjData",
    ("mujoco._structs", "MjModel"): "MjModel",
    ("ale_py._ale_py", "ALEInterface"): "ALE",
}


def is_simulator(value: Any) -> bool:
    """Whether `value` is one that `take` and `put` know."""
    cls = type(value)
    return (cls.__module__, cls.__name__) in _KINDS


def take(simulator: Any) -> bytes:
    """Return its contents. A MuJoCo model's travel with its data."""
    kind = _kind(simulator)
    if kind == "MjData":
        # all of it: some environments read what the last step left behind, which `mj_getState` leaves out
        return pickle.dumps(simulator, protocol=5)
    if kind == "ALE":
        return pickle.dumps(simulator.cloneState(include_rng=True), protocol=5)
    return b""


def put(simulator: Any, contents: bytes) -> None:
    """Put contents back in place.

    Raises:
        NotCapturable: If the simulator was built otherwise.
    """
    kind = _kind(simulator)
    if kind == "MjData":
        import mujoco

        saved = pickle.loads(contents)
        if not np.array_equal(_model_bytes(simulator.model), _model_bytes(saved.model)):
            _put_model(simulator.model, saved.model)
        mujoco.mj_copyData(simulator, simulator.model, saved)
    elif kind == "ALE":
        simulator.restoreState(pickle.loads(contents))


def _kind(simulator: Any) -> str:
    cls = type(simulator)
    return _KINDS[cls.__module__, cls.__name__]


def _model_bytes(model: Any) -> np.ndarray:
    import mujoco

    buffer = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer


def _put_model(model: Any, saved: Any) -> None:
    """Bring a model to where another one is: environments that randomise their physics change it as they go."""
    for target, source in ((model, saved), (model.opt, saved.opt)):
        for name in dir(source):
            value = None if name.startswith("_") else getattr(source, name)
            if isinstance(value, np.ndarray) and np.shape(getattr(target, name)) == value.shape:
                getattr(target, name)[...] = value
            elif source is saved.opt and isinstance(value, int | float):
                setattr(target, name, value)
    if not np.array_equal(_model_bytes(model), _model_bytes(saved)):
        raise NotCapturable(
            "The MuJoCo model was saved with another structure. Build the environment as the first time."
        )
