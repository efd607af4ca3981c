"""Films an episode of a run's best policy: ``python -m rltrack.training.film RUN_FOLDER VIDEO GIF``."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from rltrack.agents.environments import is_rendered_as_pictures
from rltrack.cleanup import close_all
from rltrack.errors import ConfigurationError, MissingExtra, RltrackError
from rltrack.evaluation.episodes import episode_seeds
from rltrack.runs import RunDirectory
from rltrack.text import printable
from rltrack.training.trainer import agent_of, config_of

MAX_FRAMES = 1000
_GIF_FRAMES, _GIF_WIDTH = 60, 240
_FRAMES_PER_SECOND = 30


def film(run: RunDirectory, video: Path, gif: Path, version: str = "best") -> int:
    """Play one episode, and write it as a video and as a small animated picture.

    Args:
        run: The run.
        video: An ``.mp4`` file to write.
        gif: A ``.gif`` file to write.
        version: Whose policy plays.

    Returns:
        The number of frames of the video; at most `MAX_FRAMES`.

    Raises:
        ConfigurationError: If the environment cannot be rendered as pictures.
    """
    env_id = config_of(run).environment.id
    if is_rendered_as_pictures(env_id) is False:
        raise ConfigurationError(_no_pictures(env_id))
    frames = list(itertools.islice(scenes(run, version, "rgb_array"), MAX_FRAMES))
    write_video(frames, video)
    _write_gif(frames, gif)
    return len(frames)


def scenes(run: RunDirectory, version: str, render_mode: str, seed: int | None = None) -> Generator[Any, None, None]:
    """Play one episode of a version's policy; yield what each step looks like.

    Args:
        run: The run.
        version: Whose policy plays.
        render_mode: ``rgb_array`` for pictures, uint8, shape ``(height, width, 3)``; ``ansi`` for text; ``human`` for a window that
            the environment opens itself, and None from here.
        seed: Of the episode; None for that of the run's first evaluation.

    Raises:
        ConfigurationError: If the environment cannot be rendered so.
    """
    agent, env, _, config = agent_of(run, version, {"render_mode": render_mode})
    stage = agent.make_evaluation_env(None, 1)
    try:
        observation = stage.start([episode_seeds(config.seed, 1) if seed is None else [seed]])
        state, starts = None, np.ones(1, dtype=bool)
        while True:
            yield _look(stage, config.environment.id, render_mode)
            actions, state = agent.predict(
                observation, state=state, episode_start=starts, deterministic=True, **stage.prediction_inputs()
            )
            observation, _, dones, infos = stage.step(actions)
            starts = dones
            if dones[0] and (not stage.reports_episodes or "episode" in infos[0]):
                return
    finally:
        close_all(stage, env)


def _look(stage: Any, env_id: str, render_mode: str) -> Any:
    if render_mode == "rgb_array":
        return _picture(stage, env_id)
    return str(stage.venv.env_method("render")[0]) if render_mode == "ansi" else None


def _picture(stage: Any, env_id: str) -> np.ndarray:
    try:
        frame = stage.picture()
    except Exception as error:
        raise ConfigurationError(
            f"{_no_pictures(env_id)} Its render() raised {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    picture = None if frame is None else np.asarray(frame)
    if picture is None or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        found = "nothing" if frame is None else f"{type(frame).__name__} {np.shape(frame)}"
        raise ConfigurationError(f"{_no_pictures(env_id)} Its render() returned {found}, not (height, width, 3).")
    return picture.astype(np.uint8)


def _no_pictures(env_id: str) -> str:
    return f"{env_id} cannot be rendered as pictures (render_mode 'rgb_array')."


def write_video(frames: list[np.ndarray], path: Path) -> None:
    """Write pictures of one size as an ``.mp4`` file.

    Raises:
        MissingExtra: Without moviepy.
    """
    try:
        from moviepy import ImageSequenceClip
    except ImportError:
        raise MissingExtra("A film needs moviepy: pip install 'rltrack[video]'.") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[0] // 2 * 2, frames[0].shape[1] // 2 * 2  # what the codec can encode
    clip = ImageSequenceClip([frame[:height, :width] for frame in frames], fps=_FRAMES_PER_SECOND)
    clip.write_videofile(str(path), codec="libx264", audio=False, logger=None)


def _write_gif(frames: list[np.ndarray], path: Path) -> None:
    from PIL import Image

    every = max(1, -(-len(frames) // _GIF_FRAMES))
    pictures = [Image.fromarray(frame) for frame in frames[::every]]
    for picture in pictures:
        picture.thumbnail((_GIF_WIDTH, _GIF_WIDTH))
    duration = 1000 * every // _FRAMES_PER_SECOND
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=True)


if __name__ == "__main__":
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        film(RunDirectory(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
    except RltrackError as error:
        sys.exit(printable(str(error)))
