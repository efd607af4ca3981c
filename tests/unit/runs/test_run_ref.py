"""How versions of runs are named, and what a stored configuration says."""

from __future__ import annotations

import pytest

from rltrack.errors import ConfigurationError
from rltrack.runs import RunRef, StoredConfiguration


@pytest.mark.parametrize("text", ["run", "run@best", "run@v12", "run@4096"])
def test_what_is_parsed_is_shown_alike(text):
    assert str(RunRef.parse(text)) == text


@pytest.mark.parametrize("text", ["", "@", "@best", "run@", "a@b@c", "../run@best", "a/b"])
def test_what_names_no_run_is_refused(text):
    with pytest.raises(ConfigurationError):
        RunRef.parse(text)


def test_settings_that_are_unknown_or_wrong_have_their_defaults():
    values = {
        "seed": "five",
        "start_from": "first@best",
        "checkpoints": {"keep_last": 5, "keep_best": -1, "future": True},
        "tracking": {"tags": {"a": "b"}, "log_interval": None},
    }
    found = StoredConfiguration.of(values)
    assert (found.seed, found.start_from) == (None, RunRef("first", "best"))
    assert (found.checkpoints.keep_last, found.checkpoints.keep_best) == (5, 1)
    assert found.tracking.tags == {"a": "b"}


def test_a_scripts_configuration_cannot_be_built():
    with pytest.raises(ConfigurationError, match="script"):
        StoredConfiguration.of({"name": "mine", "agent": {"class": "Mine"}}).to_training()
