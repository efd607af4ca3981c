"""Shows how policies act: in a window, as a film, or as text; several versions of a run side by side in a film."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rltrack.agents.environments import render_modes
from rltrack.errors import ConfigurationError
from rltrack.runs import RunDirectory
from rltrack.text import is_terminal
from rltrack.training.film import MAX_FRAMES, scenes, write_video
from rltrack.training.trainer import config_of

_TEXT_SECONDS = 0.1


def way_to_show(env_id: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the render mode to watch an environment with here: ``human`` if a display can be opened, else ``ansi``.

    Raises:
        ConfigurationError: If neither is possible; with what is.
    """
    modes = render_modes(env_id) or ("human", "rgb_array")
    no_display = None if sys.platform == "darwin" else _why_no_display(environment)
    if "human" in modes and no_display is None:
        return "human"
    if "ansi" in modes:
        return "ansi"
    film = " Write a film: --film watched.mp4." if "rgb_array" in modes else ""
    why = no_display if "human" in modes else f"its render modes are {', '.join(modes) or 'none'}"
    raise ConfigurationError(f"{env_id} cannot be shown here: {why}.{film}")


def _why_no_display(environment: Mapping[str, str]) -> str | None:
    """Return why no window can be opened, or None. It is tried beforehand, as GLFW aborts the process without a display."""
    if environment.get("WAYLAND_DISPLAY"):
        return None
    name = environment.get("DISPLAY")
    if not name:
        return "there is no display"
    try:
        x11 = ctypes.CDLL("libX11.so.6")
    except OSError:
        return "libX11.so.6, which windows need, is not installed"
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = x11.XOpenDisplay(name.encode())
    if not display:
        return f"the display {name} cannot be opened (variable DISPLAY)"
    x11.XCloseDisplay(ctypes.c_void_p(display))
    return None


def show(run: RunDirectory, versions: Sequence[str], seed: int | None, write: Callable[[str], None]) -> None:
    """Play an episode of each version, one after the other, in a window or as text; end when the window is closed.

    Raises:
        ConfigurationError: As `way_to_show`; or if no window can be opened.
    """
    env_id = config_of(run).environment.id
    mode = way_to_show(env_id)
    for version in versions:
        name, steps = f"{run.name}@{version}", 0
        with contextlib.closing(scenes(run, version, mode, seed)) as episode:
            for scene in episode:
                if scene is not None:
                    write(f"{name}, step {steps}\n{scene.rstrip()}\n")
                    time.sleep(_TEXT_SECONDS if is_terminal(sys.stdout) else 0.0)
                else:
                    if steps == 0:
                        _check_window(env_id)
                    if is_closed(title=f"{name}, step {steps}"):
                        write(f"{name}: the window was closed at step {steps}")
                        return
                steps += 1
        write(f"{name}: the episode has {steps} steps")


def is_closed(title: str) -> bool:
    """Set the title of the environment's window, by pygame or GLFW (MuJoCo); return whether the user closed the window."""
    pygame, glfw = sys.modules.get("pygame"), sys.modules.get("glfw")
    if pygame is not None and pygame.display.get_init():
        pygame.display.set_caption(title)
        return bool(pygame.event.peek(pygame.QUIT))
    if glfw is None or not (window := glfw.get_current_context()):
        return False
    glfw.set_window_title(window, title)
    return bool(glfw.window_should_close(window))


def _check_window(env_id: str) -> None:
    """Refuse a window that is not visible: without a display, SDL draws into memory."""
    pygame = sys.modules.get("pygame")
    if pygame is None or not pygame.display.get_init():
        return
    driver = pygame.display.get_driver()
    if driver in ("dummy", "offscreen"):
        raise ConfigurationError(
            f"{env_id} cannot be shown here: no window can be opened (SDL's video driver is '{driver}'). Set DISPLAY to a running "
            "display and unset SDL_VIDEODRIVER, or write a film: --film watched.mp4."
        )


def film(run: RunDirectory, versions: Sequence[str], seed: int | None, path: Path) -> int:
    """Film an episode of each version, on the same seed, side by side; return the number of frames.

    Raises:
        ConfigurationError: If the environment cannot be rendered as pictures.
        MissingExtra: Without moviepy.
    """
    frames = list(
        itertools.islice(_side_by_side([scenes(run, version, "rgb_array", seed) for version in versions]), MAX_FRAMES)
    )
    write_video(frames, path)
    return len(frames)


def _side_by_side(plays: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Join the pictures of several episodes; one that has ended keeps its last picture, darkened."""
    last: list[np.ndarray | None] = [None] * len(plays)
    while True:
        pictures = [next(play, None) for play in plays]
        if all(picture is None for picture in pictures):
            return
        for index, picture in enumerate(pictures):
            if picture is not None:
                last[index] = picture
        shown = [
            old if new is not None else old // 2 for new, old in zip(pictures, last, strict=True) if old is not None
        ]
        yield np.concatenate(shown, axis=1)
