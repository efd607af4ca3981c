"""What a user's own code changes in a model or a callback comes back with a version, or the resume is labelled."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from rltrack import TrainingLoop
from rltrack.checkpoints.encoding import decode, encode
from rltrack.errors import ConfigurationError
from rltrack.journal import read_journal
from rltrack.runs import Root
from tests.resume.test_same_as_learn import CASES, build
from tests.support.agents import NullObserver

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.buffers import RolloutBuffer  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes  # noqa: E402
from stable_baselines3.common.logger import HParam  # noqa: E402
from stable_baselines3.common.noise import NormalActionNoise  # noqa: E402
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # noqa: E402

from rltrack.agents.sb3 import SB3Agent  # noqa: E402


def ppo(kind=sb3.PPO, policy_kwargs=None, env="CartPole-v1", **more):
    more = {"n_steps": 16, "batch_size": 8, "n_epochs": 2, "seed": 0, "device": "cpu", **more}
    return kind("MlpPolicy", env, policy_kwargs={"net_arch": [8], **(policy_kwargs or {})}, **more)


class AdaptivePPO(sb3.PPO):
    """With a coefficient of its own."""

    def _setup_model(self):
        super()._setup_model()
        self.beta = 1.0

    def train(self):
        self.beta *= 0.8
        self.ent_coef = 0.1 * self.beta
        super().train()


class CuriousPPO(sb3.PPO):
    """With a network and an optimizer of its own, as RND has."""

    def _setup_model(self):
        super()._setup_model()
        self.net = torch.nn.Linear(4, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-2)

    def train(self):
        loss = ((self.net(torch.as_tensor(self.rollout_buffer.observations.reshape(-1, 4))) - 1) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.ent_coef = float(loss.detach())
        super().train()


class DecayingNoise(NormalActionNoise):
    def __call__(self):
        self._sigma = self._sigma * 0.9
        return super().__call__()


class Shrinking:
    """A schedule that counts its calls."""

    def __init__(self):
        self.value = 3e-2

    def __call__(self, remaining):
        self.value *= 0.9
        return self.value


class Centred(BaseFeaturesExtractor):
    """With a running mean that is no buffer."""

    def __init__(self, space):
        super().__init__(space, 4)
        self.mean = torch.zeros(4)

    def forward(self, observations):
        self.mean = 0.9 * self.mean + 0.1 * observations.mean(0).detach()
        return observations - self.mean


class ScaledRewards(RolloutBuffer):
    scale = 1.0

    def compute_returns_and_advantage(self, last_values, dones):
        self.scale = 0.9 * self.scale + 0.1 * float(np.abs(self.rewards).sum())
        self.rewards /= self.scale
        super().compute_returns_and_advantage(last_values, dones)


class CountingSGD(torch.optim.SGD):
    def __init__(self, parameters, lr=1e-2, **more):
        super().__init__(parameters, lr=lr)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 1e-1 / (1 + self.count)
        return super().step(closure)


class Own(BaseCallback):
    """Changes the model at each rollout's end by what it holds."""

    def __init__(self, change, **held):
        super().__init__()
        self.change = change
        vars(self).update(held)

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.change(self)


def halve_learning_rate(callback):
    callback.model.learning_rate *= 0.5
    callback.model._setup_lr_schedule()


def freeze_once(callback):
    if not callback.held:
        callback.held = True
        callback.model.policy.mlp_extractor.requires_grad_(False)


def by_entropy(value):
    return lambda callback: setattr(callback.model, "ent_coef", 0.01 * float(value(callback)))


def length_after_append(callback):
    callback.held.append(callback.num_timesteps)
    return sum(callback.held)


def count(callback):
    name = f"{callback.num_timesteps}"
    callback.held[name] = callback.held["a"] + 1
    callback.held.move_to_end("a") if isinstance(callback.held, OrderedDict) else callback.held[f"no {name}"]
    return sum(callback.held.values())


def td3_with_noise():
    noise = DecayingNoise(np.zeros(1), np.ones(1))
    return sb3.TD3(
        "MlpPolicy", "Pendulum-v1", action_noise=noise, learning_starts=5, batch_size=8, buffer_size=300, train_freq=10,
        gradient_steps=1, seed=0, device="cpu", policy_kwargs={"net_arch": [8]},
    )  # fmt: skip


MODELS = {
    "a coefficient of a subclass": lambda: ppo(AdaptivePPO),
    "a network and an optimizer of a subclass": lambda: ppo(CuriousPPO),
    "an action noise": td3_with_noise,
    "a schedule": lambda: ppo(learning_rate=Shrinking()),
    "a feature extractor": lambda: ppo(policy_kwargs={"features_extractor_class": Centred}),
    "a rollout buffer": lambda: ppo(rollout_buffer_class=ScaledRewards),
    "an optimizer": lambda: ppo(policy_kwargs={"optimizer_class": CountingSGD, "optimizer_kwargs": {}}),
}
CALLBACKS = {
    "entropy": lambda: Own(lambda callback: setattr(callback.model, "ent_coef", callback.model.ent_coef * 0.7 + 0.01)),
    "learning rate": lambda: Own(halve_learning_rate),
    "clip range": lambda: Own(lambda c: setattr(c.model.clip_range.value_schedule, "val", c.model.clip_range(1) * 0.01)),
    "frozen layers": lambda: Own(freeze_once, held=False),
    "deque": lambda: Own(by_entropy(length_after_append), held=deque(maxlen=3)),
    "list": lambda: Own(by_entropy(length_after_append), held=[]),
    "generator": lambda: Own(by_entropy(lambda callback: callback.held.random()), held=np.random.default_rng(3)),
    "RandomState": lambda: Own(by_entropy(lambda callback: callback.held.rand()), held=np.random.RandomState(3)),
    "random": lambda: Own(by_entropy(lambda callback: callback.held.random()), held=random.Random(3)),
    "torch": lambda: Own(
        by_entropy(lambda c: torch.rand(1, generator=c.held)), held=torch.Generator().manual_seed(3)
    ),
    "defaultdict": lambda: Own(by_entropy(count), held=defaultdict(int, a=1)),
    "Counter": lambda: Own(by_entropy(count), held=Counter("a")),
    "OrderedDict": lambda: Own(by_entropy(count), held=OrderedDict(a=1)),
}  # fmt: skip


def bound(model, callbacks=()):
    agent = SB3Agent(model)
    agent.allow_probe(False)
    agent.take_callbacks(callbacks, 1000)
    agent.bind(None, None)
    return agent


def advance(agent, times):
    for _ in range(times):
        agent.advance(NullObserver())


def through_a_file(state):
    """As a store has it."""
    environment = state.pop("environment")
    encoded = encode({part: value for part, value in state.items() if part != "buffers"})
    return {**decode(*encoded), "environment": environment, "buffers": state["buffers"]}


def weights(agent):
    return {name: tensor.clone() for name, tensor in agent.model.policy.state_dict().items()}


def assert_halves_equal_a_whole(make, callbacks=lambda: ()):
    whole = bound(make(), callbacks())
    advance(whole, 4)
    expected = weights(whole)
    whole.release()
    first = bound(make(), callbacks())
    advance(first, 2)
    state = through_a_file(first.capture())
    first.release()
    torch.manual_seed(99)
    second = bound(make(), callbacks())
    second.restore(state)
    advance(second, 2)
    found = weights(second)
    second.release()
    assert "not_captured" not in state
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("case", MODELS)
def test_what_a_model_holds_comes_back(case):
    assert_halves_equal_a_whole(MODELS[case])


@pytest.mark.parametrize("case", CALLBACKS)
def test_what_a_callback_holds_or_changes_comes_back(case):
    assert_halves_equal_a_whole(ppo, lambda: [CALLBACKS[case]()])


@pytest.mark.parametrize("case", CASES)
def test_the_algorithms_themselves_change_nothing_else(case):
    """A version of a training without own code is as it was before this existed, and no label is added."""
    agent = bound(build(case)[0])
    agent.accelerate()
    advance(agent, 2)
    state = agent.capture()
    agent.release()
    assert "attributes" not in state["counters"]
    assert "not_captured" not in state


class Opaque:
    __slots__ = ("value",)


Pair = namedtuple("Pair", "a b")


class Secretive(torch.nn.Linear):
    """With a state that is no data."""

    def get_extra_state(self):
        return Opaque()

    def set_extra_state(self, state):
        pass


LOST = {
    "a set": lambda: Own(lambda callback: callback.held.add(callback.num_timesteps), held=set()),
    "a named tuple": lambda: Own(lambda callback: setattr(callback, "held", Pair(callback.num_timesteps, 1)), held=Pair(1, 2)),
    "an array of texts": lambda: Own(lambda c: setattr(c, "held", np.array([str(c.num_timesteps)])), held=np.array(["x"])),
    "objects in a list": lambda: Own(lambda callback: callback.held.append(Opaque()), held=[]),
    "a function": lambda: Own(lambda callback: setattr(callback, "held", lambda: 1), held=len),
}  # fmt: skip


def test_what_cannot_be_read_is_named_at_once():
    model = ppo()
    model.net = Secretive(2, 2)
    agent = bound(model)
    assert agent.capture()["not_captured"] == "PPO changed `net`, which cannot be stored"
    agent.release()


def test_containers_that_hold_themselves_or_are_nested_without_end_do_not_end_a_training():
    circle, deep = [], []
    circle.append(circle)
    for _ in range(3000):
        deep = [deep]
    agent = bound(
        ppo(), [Own(lambda callback: callback.held.append(1), held=circle), Own(lambda callback: None, held=deep)]
    )
    advance(agent, 1)
    assert agent.capture()["not_captured"] == "the callback Own changed `held`, which cannot be stored"
    agent.release()


def test_a_long_chain_of_objects_does_not_end_a_training():
    chain = None
    for _ in range(5000):
        chain = Link(chain)
    agent = bound(ppo(), [Own(lambda callback: None, chain=chain)])
    advance(agent, 1)
    assert "not_captured" not in agent.capture()
    agent.release()


class Link:
    def __init__(self, following):
        self.following = following


@pytest.mark.parametrize("case", LOST)
def test_what_cannot_be_stored_is_named(case):
    agent = bound(ppo(), [LOST[case]()])
    assert agent.capture().get("not_captured") is None, "it has not changed yet"
    advance(agent, 1)
    state = through_a_file(agent.capture())
    assert state["not_captured"] == "the callback Own changed `held`, which cannot be stored"
    assert agent.why_not_exact() == state["not_captured"]
    agent.release()


def test_a_resume_from_such_a_version_is_labelled(own_root):
    for stop_at in (32, None):
        loop = TrainingLoop(
            ppo(), total_timesteps=64, name="labelled", resume=True, callbacks=[LOST["a set"]()], checkpoint_freq=32
        )
        if stop_at is not None:
            loop.add_hook(type("Stop", (), {"on_iteration_end": lambda self, p, i, loop=loop: loop.stop()})())
        loop.run()
    records = list(read_journal(Root().find("labelled").journal_file))
    assert [record["exact"] for record in records if record["kind"] == "attempt"] == [True, False]
    warnings = [record["message"] for record in records if record["kind"] == "warning"]
    assert any("not exactly: the callback Own changed `held`" in message for message in warnings)


def test_arguments_given_anew_count(own_root):
    """Also where other attributes of the callback come back."""
    agent = bound(ppo(), [StopTrainingOnMaxEpisodes(3)])
    advance(agent, 2)
    state = through_a_file(agent.capture())
    agent.release()
    callback = StopTrainingOnMaxEpisodes(1000)
    resumed = bound(ppo(), [callback])
    resumed.restore(state)
    resumed.release()
    assert (callback.max_episodes, callback.n_calls) == (1000, 32)


def test_versions_written_before_hold_all_of_a_callback():
    agent = bound(ppo(), [CALLBACKS["list"]()])
    state = agent.capture()
    state["counters"]["callbacks"] = [{"callback": "Own", "state": {"held": [1, 2], "n_calls": 7}}]
    agent.restore(state)
    (callback,) = agent.relay.callbacks.callbacks
    agent.release()
    assert (callback.held, callback.n_calls) == ([1, 2], 7)


@pytest.mark.parametrize(
    "saved",
    [
        [["policy", "forward", "__globals__"], "plain", 1],
        [["nothing", "x"], "plain", 1],
        [["policy"], "module", {}],
        [["x"], "eval", "1"],
        [["x"], "generator", {"bit_generator": "seed"}],
        [[], "plain", 1],
    ],
)
def test_a_hostile_version_reaches_nothing_else(saved):
    agent = bound(ppo())
    state = agent.capture()
    state["counters"]["attributes"] = [saved]
    with pytest.raises(ConfigurationError, match="does not fit PPO"):
        agent.restore(state)
    agent.release()


def test_the_model_shows_the_whole_budget():
    """An annealing callback reads ``model._total_timesteps``, as it does in ``learn()``."""
    seen = []

    def anneal(callback):
        seen.append(callback.model._total_timesteps)
        callback.model.ent_coef = 0.1 * (1 - callback.num_timesteps / callback.model._total_timesteps)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reference = ppo()
    reference.learn(64, callback=Own(anneal))
    model = ppo()
    torch.set_num_threads(threads)
    TrainingLoop(model, total_timesteps=64, tracking=False, callbacks=[Own(anneal)]).run()
    assert seen == [64] * 8
    expected, found = reference.policy.state_dict(), model.policy.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_waits_in_the_logger_and_is_no_number_stays_out():
    agent = bound(ppo())
    agent.model.logger.record("hparams", HParam({"lr": 1.0}, {"a": 0}), exclude="stdout")
    agent.model.logger.record("a", torch.tensor(2.0))
    agent.model.logger.record("b", "text")
    pending = through_a_file(agent.capture())["rollout"]["pending"]
    agent.release()
    assert pending["name_to_value"] == {"a": 2.0, "b": "text"}


def test_success_may_be_an_array():
    agent = bound(ppo())
    agent.model.ep_success_buffer.append(np.array([True]))
    state = through_a_file(agent.capture())
    agent.release()
    assert state["counters"]["successes"] == [1.0]


def test_a_closure_as_schedule_can_be_resumed(own_root):
    """Where the environment has no id, the model's description is what the run is: without addresses in memory."""

    def linear(value):
        return lambda remaining: remaining * value

    class Local(CartPoleEnv):
        pass

    models = [ppo(env=Local(), clip_range=linear(0.2)) for _ in range(2)]
    for model in models:
        loop = TrainingLoop(model, total_timesteps=32, name="closure", resume=True, eval_freq=None)
        loop.add_hook(type("Stop", (), {"on_iteration_end": lambda self, p, i, loop=loop: loop.stop()})())
        assert loop.run().env_steps > 0
    assert [model.num_timesteps for model in models] == [16, 32]
