"""A policy is shown, or one line says why it cannot be."""

from __future__ import annotations

import pytest

pytest.importorskip("pygame")

from rltrack.errors import ConfigurationError
from rltrack.inspection.watching import show
from tests.unit.inspection.test_reproducing import trained


def test_a_display_that_does_not_exist_is_refused(own_root, monkeypatch):
    run = trained(own_root)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setenv("DISPLAY", ":99")
    with pytest.raises(ConfigurationError, match="no window can be opened"):
        show(run, ["last"], None, print)
    monkeypatch.delenv("DISPLAY")
    with pytest.raises(ConfigurationError, match="there is no display"):
        show(run, ["last"], None, print)


def test_versions_are_shown_one_after_the_other(own_root, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    run = trained(own_root, environment={"id": "FrozenLake-v1"})
    told = []
    show(run, ["v2", "v3"], 1, told.append)
    ends = [text for text in told if "the episode has" in text]
    assert [text.partition(":")[0] for text in ends] == ["again@v2", "again@v3"]
    assert "FHFH" in told[0]
