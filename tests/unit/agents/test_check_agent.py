"""check_agent: a table of wrong agents, each with its own finding; a right one has none."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rltrack import AgentBase, check_agent
from rltrack.agents import IterationStats, as_agent
from rltrack.agents.base import OPTIONAL_METHODS, REQUIRED_METHODS
from rltrack.errors import ConfigurationError
from tests.support.agents import ScriptedAgent, own_agent_of_the_docs

Right = own_agent_of_the_docs()
ENV = "CartPole-v1"


def with_state(**parts):
    """capture() with other parts."""
    return {"capture": lambda self: {**Right.capture(self), **parts}}


def with_state_of(parts):
    return {"capture": lambda self: {**Right.capture(self), **parts(self)}}


def restores_actor(self, state):
    Right.restore(self, state | ({"policy": state["actor"]} if "actor" in state else {}))


def without(part):
    return {"capture": lambda self: {name: value for name, value in Right.capture(self).items() if name != part}}


def advancing(change):
    """advance() whose statistics are changed."""
    return {"advance": lambda self, observer: change(Right.advance(self, observer))}


def ends_with_a_dictionary(self, observer):
    observer.on_episode_end, told = lambda episode: told({"r": episode.episode_return}), observer.on_episode_end
    try:
        return Right.advance(self, observer)
    finally:
        del observer.on_episode_end


class Silent:
    """An observer that hears nothing of steps."""

    wants_steps = False

    def __init__(self, observer):
        self.on_episode_end = observer.on_episode_end

    def on_step(self, env_steps, step):
        pass


def draws_from_process(self, observer):
    self.weights = self.weights + 1e-3 * np.random.standard_normal(4)
    return Right.advance(self, observer)


def draws_from_python(self, observer):
    self.rng.random(random.randrange(1, 9))
    return Right.advance(self, observer)


def binds_array(self, env, seed):
    Right.bind(self, env, seed)
    self.array = np.zeros(4)


def trains_in_place(self, observer):
    self.array += 1.0
    return Right.advance(self, observer)


def restores_array(self, state):
    Right.restore(self, state)
    self.array = state.get("buffers", {"rows": self.array})["rows"]


def binds_unseeded(self, env, seed):
    Right.bind(self, env, seed)
    self.rng = np.random.default_rng()


def restores_all(self, state):
    Right.restore(self, {name: state[name] for name in ("policy", "counters", "random")})


def restores_no_steps(self, state):
    steps = self.steps
    Right.restore(self, state)
    self.steps = steps


def resets_steps(self, state):
    self.steps = 0
    Right.restore(self, state)


def continues_episodes(self, observer):
    seed, self.seed = self.seed, self.seed - self.episodes if not self.episodes else None
    if self.seed is None:
        reset, self.env.reset = self.env.reset, lambda seed=None: reset()
    try:
        self.seed = seed
        return Right.advance(self, observer)
    finally:
        self.env.__dict__.pop("reset", None)


def predicts_and_counts(self, observation, **inputs):
    self.steps += 1
    return Right.predict(self, observation, **inputs)


def acts(change):
    return {"predict": lambda self, observation, **inputs: (change(self, Right.predict(self, observation)[0]), None)}


WRONG = {
    "predict() cannot be called so": (
        {"predict": lambda self, observation: None},
        "error: predict(observation) cannot be called as predict(observation, state=state, episode_start=episode_start, "
        "deterministic=deterministic). Give it these parameters.",
    ),
    "advance() wants more": (
        {"advance": lambda self, observer, more: None},
        "advance(observer, more) cannot be called as",
    ),
    "capture only": (
        {"restore": AgentBase.restore},
        "there is capture() and no restore(). Implement restore(state) too",
    ),
    "a misspelled method": (
        {"describe_polcy": lambda self: None},
        "describe_polcy() is never called. If describe_policy()",
    ),
    "bind raises": ({"bind": lambda self, env, seed: 1 // 0}, "bind(env, seed) raised ZeroDivisionError: "),
    "no statistics": (
        advancing(lambda stats: None),
        "advance() returns a NoneType. Return an rltrack.agents.IterationStats",
    ),
    "wrong steps in the statistics": (
        advancing(lambda stats: IterationStats(stats.env_steps + 1)),
        "env steps in IterationStats, and",
    ),
    "steps that are not observed": (
        {"advance": lambda self, observer: Right.advance(self, Silent(observer))},
        "the observer was called with 0 env steps in one iteration, and the environment took",
    ),
    "an episode as a dictionary": (
        {"advance": ends_with_a_dictionary},
        "the observer gets a dict at the end of an episode. Pass an rltrack.agents.EpisodeInfo(",
    ),
    "no steps": (
        {"advance": lambda self, observer: IterationStats(0)},
        "advance() took no env step. Collect experience in every iteration",
    ),
    "text as a metric": (
        advancing(lambda stats: IterationStats(stats.env_steps, [(1, {"train/mood": "good"})])),
        "the metric 'train/mood' is a str. Make it a number",
    ),
    "metrics without steps": (
        advancing(lambda stats: IterationStats(stats.env_steps, {"train/loss": 1.0})),
        "Make it a list of pairs: env steps of the run, and a dictionary of numbers",
    ),
    "an infinite loss": (
        advancing(lambda stats: IterationStats(stats.env_steps, losses={"train/loss": np.inf})),
        "the loss 'train/loss' is inf",
    ),
    "actions of one environment": (
        acts(lambda self, actions: actions[0]),
        "predict() returns actions of shape () for 2 observations; the action space is Discrete(2). Return the shape (2,)",
    ),
    "actions as floats": (
        acts(lambda self, actions: actions.astype(np.float32)),
        "predict() returns actions of dtype float32; the action space is Discrete(2). Return int64",
    ),
    "an action outside the space": (acts(lambda self, actions: actions + 2), "outside the action space Discrete(2)"),
    "actions alone": (
        {"predict": lambda self, observation, **inputs: Right.predict(self, observation)[0]},
        "predict() returns a ndarray. Return a pair",
    ),
    "sampled actions": (
        acts(lambda self, actions: self.rng.integers(2, size=len(actions))),
        "predict(deterministic=True) returns different actions for the same observation",
    ),
    "an evaluation that counts": (
        {"predict": predicts_and_counts},
        "predict(deterministic=True) changes the agent's state: counters/steps",
    ),
    "no state": (
        {"capture": AgentBase.capture, "restore": AgentBase.restore},
        "warning: there is no capture() and restore(state). Implement both, or a training has no checkpoints",
    ),
    "an object in the state": (
        with_state(random={"rng": np.random.default_rng()}),
        "capture() returns a state that cannot be stored: /random/rng: a numpy.random._generator.Generator",
    ),
    "a reserved part": (with_state(loop={}), "capture() returns a part 'loop', which the training loop uses itself"),
    "no policy": (
        {
            "capture": lambda self: {**without("policy")["capture"](self), "actor": {"weights": self.weights}},
            "restore": restores_actor,
        },
        "capture() returns no part 'policy'",
    ),
    "a random stream that is not captured": (
        without("random"),
        "capture() and restore() do not bring back self.rng",
    ),
    "a counter that is not captured": (
        {"capture": lambda self: {**Right.capture(self), "counters": {"steps": self.steps, "episodes": 0}}},
        "capture() and restore() do not bring back self.episodes",
    ),
    "a counter that is not restored": ({"restore": restores_no_steps}, "restore() does not bring back counters/steps"),
    "numpy's process-wide stream": (
        {"advance": draws_from_process},
        "the environment's np_random, numpy.random.",
    ),
    "Python's process-wide stream": (
        {"advance": draws_from_python},
        "the environment's np_random, Python's module random.",
    ),
    "an episode that continues": ({"advance": continues_episodes}, "do not bring back the environment's np_random"),
    "live arrays": (
        {
            "bind": binds_array,
            "advance": trains_in_place,
            **with_state_of(lambda self: {"buffers": {"rows": self.array}}),
            "restore": restores_array,
        },
        "the next iteration changes what capture() returned",
    ),
    "all parts or none": (
        {"restore": restores_all},
        "restore() with the part(s) policy only raised KeyError: 'counters'",
    ),
    "a part that was not given": (
        {"restore": resets_steps},
        "restore() with the part(s) policy only changes another part: counters/steps",
    ),
    "all parts for one": (
        {"capture_parts": lambda self, parts: self.capture()},
        "capture_parts(('policy',)) returns ['counters', 'environment', 'policy', 'random']",
    ),
    "exact without an environment": (without("environment"), "capture() returns no part 'environment'"),
    "exact and silent": (
        {"why_not_exact": AgentBase.why_not_exact},
        "a resume is exact, but there is no why_not_exact()",
    ),
    "inexact by its own words": (
        {"why_not_exact": lambda self: "the arm moves on"},
        "warning: the agent says that a resume is not exact: the arm moves on",
    ),
    "a description that changes": (
        {"describe": lambda self: {"algorithm": "R", "at": id(self)}},
        "describe() changes between two trainings of the same agent: at",
    ),
    "no algorithm": ({"describe": lambda self: {}}, "describe() returns '{}'. Return a dictionary with \"algorithm\""),
    "seeded in words only": (
        {"bind": binds_unseeded, "is_seeded": lambda self: True},
        "is_seeded() returns True, and two trainings with the same seed differ",
    ),
}


def test_a_right_agent_has_no_finding():
    agent = Right()
    assert check_agent(agent, ENV) == []
    assert not hasattr(agent, "env"), "it was not touched"


@pytest.mark.parametrize("case", WRONG)
def test_each_fault_has_its_line(case):
    methods, expected = WRONG[case]
    findings = [str(finding) for finding in check_agent(type("Wrong", (Right,), methods)(), ENV)]
    assert len(findings) == 1, "\n".join(findings)
    assert expected in findings[0]
    assert "\n" not in findings[0]


def test_an_agent_with_the_interface_only_and_missing_methods():
    class Half:
        def bind(self, env, seed):
            pass

        def predict(self, observation, *, state=None, episode_start=None, deterministic=True):
            return observation, None

    assert [str(finding) for finding in check_agent(Half(), ENV)] == [
        "error: advance() is missing. Implement advance(observer), or inherit rltrack.agents.AgentBase.",
        "error: set_schedule() is missing. Implement set_schedule(remaining), or inherit rltrack.agents.AgentBase.",
    ]
    with pytest.raises(ConfigurationError, match="agent is the class Half"):
        check_agent(Half, ENV)
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (AgentBase,), {})()


def test_random_streams_of_the_caller_are_untouched():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    check_agent(Right(), ENV)
    assert np.random.random() == expected


def test_an_agent_without_the_base_class_gets_its_defaults():
    own = ScriptedAgent()
    own.total = 0
    own.collects_whole_episodes = True
    agent = as_agent(own)
    assert as_agent(agent) is agent
    assert (agent.class_name, agent.is_capturable, agent.collects_whole_episodes) == ("ScriptedAgent", True, True)
    assert agent.implements("scale_learning_rate")
    assert not agent.implements("cut_environments")
    assert agent.capture_parts(("policy",)).keys() == {"policy"}
    assert agent.describe() == {"algorithm": "ScriptedAgent"}
    assert agent.why_not_exact() == "ScriptedAgent does not say that its state is complete (why_not_exact)"
    with pytest.raises(ConfigurationError, match=r"ScriptedAgent has no cut_environments\(\)"):
        agent.cut_environments(True)
    assert set(REQUIRED_METHODS) == {"bind", "advance", "predict", "set_schedule"}
    assert {"capture", "restore", "describe", "release", "cut"} <= set(OPTIONAL_METHODS)
