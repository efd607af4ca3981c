"""A policy is shown, or one line says why it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time

import pytest

pytest.importorskip("pygame")

import pygame

from rltrack.errors import ConfigurationError
from rltrack.inspection.watching import is_closed, show, way_to_show
from tests.unit.inspection.test_reproducing import trained


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Reacher-v5"])
@pytest.mark.parametrize(
    ("display", "message"), [(":99", "the display :99 cannot be opened"), ("", "there is no display")]
)
def test_without_a_display_a_window_is_refused(env_id, display, message):
    with pytest.raises(ConfigurationError, match=rf"{message}.*--film"):
        way_to_show(env_id, {"DISPLAY": display})
    assert way_to_show("FrozenLake-v1", {"DISPLAY": display}) == "ansi"


def test_versions_are_shown_one_after_the_other(own_root, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    run = trained(own_root, environment={"id": "FrozenLake-v1"})
    told = []
    show(run, ["v2", "v3"], 1, told.append)
    ends = [text for text in told if "the episode has" in text]
    assert [text.partition(":")[0] for text in ends] == ["again@v2", "again@v3"]
    assert "FHFH" in told[0]


def test_a_window_has_a_title_and_can_be_closed(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.init()
    try:
        pygame.display.set_mode((8, 8))
        assert not is_closed(title="again@v2, step 0")
        assert pygame.display.get_caption()[0] == "again@v2, step 0"
        pygame.event.post(pygame.event.Event(pygame.QUIT))  # what SDL does when the close button is pressed
        assert is_closed(title="again@v2, step 1")
    finally:
        pygame.quit()


@pytest.fixture
def display(monkeypatch):
    """A display of its own, without a screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as number:
        monkeypatch.setenv("DISPLAY", f":{number.readline().strip()}")
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    yield
    server.terminate()
    server.wait()


@pytest.mark.nightly
def test_closing_the_window_ends_the_episode(own_root, display):
    run = trained(own_root)
    written, titles = [], []

    def close():
        while not any("step" in title for title in titles):
            time.sleep(0.005)
            titles.extend(pygame.display.get_caption())
        pygame.event.post(pygame.event.Event(pygame.QUIT))

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    show(run, ["v2", "v3"], None, written.append)
    closing.join()
    assert titles[-1].startswith("again@v2, step ")
    assert [text.rpartition(" ")[0] for text in written] == ["again@v2: the window was closed at step"]
