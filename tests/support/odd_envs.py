"""Small environments as people have them: each is odd in one way."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register


class Base(gym.Env):
    """Random observations; the reward is the action; an episode has 20 steps."""

    metadata = {"render_modes": []}  # noqa: RUF012
    length = 20

    def __init__(self, render_mode=None):
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self.t = 0

    def observe(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), float(action), self.t >= self.length, False, self.info()

    def info(self):
        return {}


class OrderOfASet(Base):
    """Observations follow the order of a set of texts, which the hash seed decides."""

    def observe(self):
        order = [int(text) for text in {str(number) for number in range(100)}]
        return np.array(order[:3], np.float32) / 100


class Endless(Base):
    """Never ends an episode."""

    length = 10**12


class LambdaInInfo(Base):
    def info(self):
        return {"undo": lambda: self.t}


class ItselfInInfo(Base):
    def info(self):
        return {"env": self}


class LargeInfo(Base):
    """Two megabytes in each info, also of a reset."""

    def info(self):
        return {"map": np.full(250_000, float(self.t))}

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], self.info()


class CloseRaises(Base):
    def close(self):
        raise RuntimeError("cannot close: \x1b[31mthe robot\x1b[0m is still moving")


class CloseExits(Base):
    """As many a game does in its close()."""

    def close(self):
        raise SystemExit(0)


class DelRaises(Base):
    def __del__(self):
        raise RuntimeError("no")


class KeepsInfo(Base):
    """Keeps what cannot be pickled, among it its last info."""

    def step(self, action):
        result = super().step(action)
        self.last = {"undo": lambda: self.t}
        self.numbers = (one for one in range(10))
        return result


class KeepsObjects(Base):
    def reset(self, *, seed=None, options=None):
        self.bag = np.array([{"a": 1}, "b", None], dtype=object)
        return super().reset(seed=seed)


class Alone(Base):
    """One instance in a process, until it is closed."""

    lives = 0
    error: Exception = RuntimeError("the simulator allows one instance in a process")

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        if Alone.lives:
            raise self.error
        Alone.lives += 1

    def close(self):
        Alone.lives = 0


class OneConnection(Alone):
    """Connects to a simulator that accepts one connection."""

    error = ConnectionRefusedError(111, "Connection refused")


class NoMetadata(Base):
    metadata = None


class OldReset(Base):
    def reset(self):
        self.t = 0
        return self.observe()


class NoSpace(Base):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        del self.observation_space


class CannotBeBuilt(Base):
    def __init__(self, render_mode=None):
        raise FileNotFoundError("map.bin \x1b]0;owned\x07 is missing")


class TakesNoRenderMode(Base):
    def __init__(self):
        super().__init__()


class RenderRaises(Base):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def render(self):
        raise RuntimeError("no display")


class Speaks(Base):
    """Its message wants to steer the terminal."""

    def step(self, action):
        raise RuntimeError("\x1b[2J\x1b[31mall your runs are deleted")


def _observing(space):
    class Observing(Base):
        def __init__(self, render_mode=None):
            super().__init__(render_mode)
            self.observation_space = space

        def observe(self):
            return self.observation_space.sample()

    return Observing


BOX = spaces.Box(-1, 1, (2,), np.float32)
SPACES = {
    "Text": spaces.Text(5),
    "Sequence": spaces.Sequence(BOX),
    "Graph": spaces.Graph(BOX, None),
    "Tuple": spaces.Tuple((BOX, BOX)),
    "OneOf": spaces.OneOf((BOX, BOX)),
    "NestedDict": spaces.Dict({"arm": spaces.Dict({"angle": BOX})}),
    "DictOfText": spaces.Dict({"said": spaces.Text(5), "seen": BOX}),
}

KINDS = [
    Base, Endless, LambdaInInfo, ItselfInInfo, LargeInfo, CloseRaises, CloseExits, DelRaises, KeepsInfo,
    KeepsObjects, OrderOfASet, Alone, NoMetadata, OldReset, NoSpace, CannotBeBuilt, TakesNoRenderMode, RenderRaises, Speaks,
]  # fmt: skip
for _kind in KINDS:
    register(f"Odd{_kind.__name__}-v0", entry_point=_kind)
for _name, _space in SPACES.items():
    register(f"Odd{_name}Space-v0", entry_point=_observing(_space))
