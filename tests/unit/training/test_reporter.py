from __future__ import annotations

import io
import sys

import pytest

from rltrack.text import is_terminal
from rltrack.training.train_loop import TrainingLoop
from tests.support.agents import ScriptedAgent, TinyEnv


class Tee:
    """What scripts put in place of standard error, to have it in a file too."""

    def write(self, text):
        return len(text)

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Tee(), io.StringIO(), closed()])
def test_standard_error_may_be_anything(stream, monkeypatch):
    assert not is_terminal(stream)
    monkeypatch.setattr(sys, "stderr", stream)
    loop = TrainingLoop(ScriptedAgent(skills=[0.5]), TinyEnv(), total_timesteps=10, tracking=False)
    assert loop.run().env_steps == 10
