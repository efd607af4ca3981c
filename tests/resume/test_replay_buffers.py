"""Replay buffers of other people's making, and ones that something else writes to."""

from __future__ import annotations

import numpy as np
import pytest

from rltrack import TrainingLoop
from rltrack.runs import Root
from rltrack.training.verify import comparable, first_difference

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.buffers import ReplayBuffer  # noqa: E402


class Weighted(ReplayBuffer):
    """Keeps more than rows: weights that change after they were written, and a count."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.weights = {"w": np.ones(self.buffer_size)}
        self.drawn = 0

    def sample(self, batch_size, env=None):
        self.drawn += batch_size
        self.weights["w"][np.random.randint(self.pos + 1)] *= 0.5
        share = self.weights["w"][: max(self.pos, 1)]
        rows = np.random.choice(len(share), batch_size, p=share / share.sum())
        return self._get_samples(rows, env=env)


class AddsDemonstrations:
    """Writes to the buffer itself, at a fixed moment."""

    def __init__(self, model):
        self.model = model

    def on_iteration_end(self, progress, stats):
        if progress.env_steps in (200, 300):
            replay = self.model.replay_buffer
            for _ in range(7):
                replay.add(np.zeros((1, 4)), np.ones((1, 4)), np.zeros((1, 1)), np.ones(1), np.zeros(1), [{}])


def loop(name, buffer_class, stop_at=None, demonstrations=False):
    model = sb3.DQN(
        "MlpPolicy", "CartPole-v1", seed=1, device="cpu", learning_starts=50, buffer_size=250, batch_size=8,
        policy_kwargs={"net_arch": [8]}, replay_buffer_class=buffer_class,
    )  # fmt: skip
    found = TrainingLoop(model, total_timesteps=500, checkpoint_freq=100, eval_freq=None, name=name, resume=True)
    if demonstrations:
        found.add_hook(AddsDemonstrations(model))
    if stop_at is not None:
        hook = type("Stop", (), {"on_iteration_end": lambda self, p, i: p.env_steps >= stop_at and found.stop()})
        found.add_hook(hook())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("buffer_class", "demonstrations"), [(Weighted, False), (ReplayBuffer, True)])
def test_they_come_back(buffer_class, demonstrations, own_root):
    whole = loop("whole", buffer_class, demonstrations=demonstrations)
    whole.run()
    loop("halves", buffer_class, stop_at=260, demonstrations=demonstrations).run()
    halves = loop("halves", buffer_class, demonstrations=demonstrations)
    halves.run()
    stores = [Root().find(name).store() for name in ("whole", "halves")]
    states = [comparable(store.read(store.find("last"))) for store in stores]
    for state in states:
        state.get("buffers", {}).get("replay", {}).pop("rows", None)  # counted on, where something else wrote
    assert first_difference(*states)[1] is None
    for name, array in vars(whole.plan.agent.replay_buffer).items():
        if isinstance(array, np.ndarray):
            assert np.array_equal(array, getattr(halves.plan.agent.replay_buffer, name)), name
    if buffer_class is Weighted:
        assert whole.plan.agent.replay_buffer.drawn == halves.plan.agent.replay_buffer.drawn
