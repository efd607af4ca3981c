"""Why a run failed: its last good version is restored, and the iterations up to the failure are repeated under watch."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rltrack.agents.first_cause import Cause, CauseFound, FirstCause
from rltrack.checkpoints import Version
from rltrack.config import TrainingConfig
from rltrack.errors import RltrackError
from rltrack.files import replace_text
from rltrack.inspection.scratch import (
    copy_run,
    quiet_config,
    versions_to_repeat_from,
    what_is_not_exact,
    without_warnings,
)
from rltrack.runs import Root, RunDirectory
from rltrack.text import printable
from rltrack.training.live import Due, LiveTraining
from rltrack.training.marks import Mark
from rltrack.training.reporter import ProgressReporter
from rltrack.training.train_loop import TrainingLoop
from rltrack.training.trainer import Trainer

_ITERATIONS_PAST_THE_END = 2


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What came out.

    Attributes:
        cause: The first cause; None where all was well.
        begin: Name of the version that the repetition began with; None for the start of the run.
        from_steps: Env steps there.
        to_steps: Env steps where it ended.
        notes: What limits the answer: attempts or a resume that were not exact.
        sizes: Of weights, gradients and so on, in the last iterations (`rltrack.agents.sizes.Sizes.rows`).
        script: Repeats the actions of the environment that raised, without rltrack; None where none was written.
        error: What ended the repetition, with its traceback; None where nothing was raised.
    """

    cause: Cause | None
    begin: str | None
    from_steps: int
    to_steps: int
    notes: tuple[str, ...]
    sizes: tuple[Mapping[str, float], ...]
    script: Path | None
    error: BaseException | None


def diagnose(
    run: RunDirectory,
    *,
    at: int | None = None,
    until: int | None = None,
    make_loop: Callable[[str], TrainingLoop] | None = None,
) -> Diagnosis:
    """Repeat a run's last iterations and find the first NaN, infinity, refused action or error.

    Args:
        run: The run; it is only read, but for the script, which lands in its ``exports/``.
        at: Begin at the newest version at or before these env steps; None for the newest one.
        until: Env steps at which to end; None for where the records end, and two iterations on.
        make_loop: For an agent that no configuration describes: makes the run's training loop in the root that it is given, with
            a new agent and environment, under the run's name and with ``resume=True``.

    Raises:
        ConfigurationError: If the run's agent was built by a script, and `make_loop` is None.
    """
    versions = versions_to_repeat_from(run)
    begin = next((one for one in reversed(versions) if at is None or one.env_steps <= at), None)
    found = _repeat(run, begin, until, make_loop)
    if begin is not None and found.cause is not None and found.cause.episode is not None and found.script is None:
        # the episode began before the version: its actions are known from the start only
        earlier = _repeat(run, None, until, make_loop)
        return earlier if earlier.script is not None else found
    return found


def _repeat(
    run: RunDirectory, begin: Version | None, until: int | None, make_loop: Callable[[str], TrainingLoop] | None
) -> Diagnosis:
    config = None if make_loop else quiet_config(run)
    history = run.history(report=False)
    with tempfile.TemporaryDirectory(prefix="rltrack-diagnose-") as folder, contextlib.ExitStack() as open_parts:
        copy_run(run, begin, Root(folder))
        if config is None:
            assert make_loop is not None
            loop = make_loop(folder)
            loop.delivers = False
            open_parts.callback(loop.close)
            with without_warnings():
                live = loop.prepare()
        else:
            plain = config.agent.model_copy(update={"acceleration": "off"})
            config = config.model_copy(update={"agent": plain})
            trainer = Trainer(config, root=folder, reporter=ProgressReporter(console=False))
            trainer.loop.delivers = False
            open_parts.callback(trainer.close)
            with without_warnings():
                live = trainer.prepare()
        watch = FirstCause(live.agent, live.plan.env, lambda: live.progress.env_steps)
        error: BaseException | None = None
        try:
            live.start()
            _train(live, watch, history.env_steps, until)
        except (Exception, CauseFound) as raised:
            error = raised
            watch.exception(raised)
        finally:
            watch.remove()
            live.close()
        cause = watch.cause
        notes = [f"attempt {one['number']} of the run was not exact" for one in history.attempts if not one["exact"]]
        notes += _what_inexact_means(live)
        notes += [watch.limits] if watch.limits else []
        if cause is None and watch.actions_out_of_bounds is not None:
            notes.append(f"an action was out of bounds: {watch.actions_out_of_bounds}")
        script = None if cause is None or config is None else write_script(run, config, cause)
        steps = 0 if begin is None else begin.env_steps
        return Diagnosis(
            cause, None if begin is None else begin.name, steps, live.progress.env_steps, tuple(notes),
            tuple(row for row in watch.sizes.rows if row), script, error,
        )  # fmt: skip


def where_to_debug(error: BaseException) -> TracebackType | None:
    """Return the traceback of what ended a repetition without the frames of the watch at its end."""
    last, entry = None, error.__traceback__
    while entry is not None:
        last = last if entry.tb_frame.f_globals.get("__name__") == FirstCause.__module__ else entry
        entry = entry.tb_next
    if last is not None:
        last.tb_next = None
    return error.__traceback__


def _train(live: LiveTraining, watch: FirstCause, recorded: int, until: int | None) -> None:
    """Train an iteration at a time, to `until`, or a little past the end of the records."""
    past = 0
    while (due := live.due()) is not Due.END:
        steps = live.progress.env_steps
        if due is Due.CHUNK:
            if (until is not None and steps >= until) or (until is None and past == _ITERATIONS_PAST_THE_END):
                return
            past += steps >= recorded
            watch.sizes.begin_iteration()
        watch.doing = "" if due is Due.CHUNK else "in an evaluation: "
        live.perform(due, Mark(env_steps=steps + 1) if due is Due.CHUNK else None)


def _what_inexact_means(live: LiveTraining) -> list[str]:
    return [
        f"the repetition is not that of the run, as {why}: a failure that depends on the episode may not come again"
        for why in what_is_not_exact(live)
    ]


def write_script(run: RunDirectory, config: TrainingConfig, cause: Cause) -> Path | None:
    """Write a program that repeats an episode up to the step that raised, with Gymnasium alone; None where that is not possible."""
    episode = cause.episode
    if episode is None or episode.streams is None:
        return None
    environment = config.environment
    wrappers = list(environment.wrappers or ())
    path = run.exports / "repeat_episode.py"
    path.parent.mkdir(exist_ok=True)
    data = {
        "id": environment.id,
        "kwargs": dict(environment.kwargs),
        "wrappers": wrappers,
        "streams": episode.streams,
        "reset": episode.arguments,
        "actions": [_plain(action) for action in episode.actions],
    }
    text = _SCRIPT.format(
        what=printable(cause.text).replace("\\", "/").replace('"""', "'''"),
        actions=len(episode.actions),
        data=json.dumps(json.dumps(data, default=_plain)),
    )
    replace_text(path, text)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | float | str | bool) or value is None:
        return value
    raise RltrackError(f"An action is a {type(value).__name__}, which a script cannot hold.")


_SCRIPT = '''"""Repeats the {actions} action(s) of an episode. The last one raised, when it was trained:

{what}
"""

import importlib
import json

import gymnasium as gym
import numpy as np

EPISODE = json.loads({data})


def value(item):
    return np.array(item["array"], item["dtype"]) if isinstance(item, dict) and "array" in item else item


def named(path):
    module, _, name = path.replace(":", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)


def put(generator, state):
    if state is not None:
        for part in state["state"]:
            state["state"][part] = value(state["state"][part])
        generator.bit_generator.state = state


env = gym.make(EPISODE["id"], **EPISODE["kwargs"])
for item in EPISODE["wrappers"]:
    for path, arguments in ({{item: {{}}}} if isinstance(item, str) else item).items():
        env = named(path)(env, **(arguments or {{}}))
put(env.unwrapped.np_random, EPISODE["streams"]["np_random"])
for space, state in zip((env.unwrapped.action_space, env.unwrapped.observation_space), EPISODE["streams"]["spaces"]):
    put(space.np_random, state)
env.reset(**EPISODE["reset"])
for number, action in enumerate(EPISODE["actions"], 1):
    observation, reward, terminated, truncated, info = env.step(value(action))
    print(number, action, reward, terminated or truncated)
print("Nothing was raised: the error depends on more than this episode, such as earlier ones, or the machine.")
'''
