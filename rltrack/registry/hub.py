"""Policies on the Hugging Face hub, in the files that rl_zoo3's and huggingface_sb3's users expect there."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rltrack.cleanup import cleaning_up
from rltrack.errors import ConfigurationError, MissingExtra, RltrackError
from rltrack.registry.exchange import Exportable, exportable
from rltrack.runs import Root
from rltrack.tracking.metrics import MetricsTracker
from rltrack.tracking.plots import draw_run
from rltrack.training.film import film
from rltrack.training.trainer import evaluate_run

ADDRESS = "hf://"

_STATISTICS = "vec_normalize.pkl"
_REPOSITORY = re.compile(r"\w[\w.\-]*/\w[\w.\-]*")
_CURVE = "learning_curve.png"


def push(
    root: Root,
    what: str,
    repository: str,
    *,
    episodes: int = 100,
    video: bool = True,
    private: bool = False,
    notify: Callable[[str], None],
) -> str:
    """Upload a version's policy with a model card.

    Args:
        root: The root.
        what: ``RUN@version``.
        repository: ``ORG/NAME``; made if it is new.
        episodes: How many are played for the card's scores.
        video: Record an episode, if the environment renders pictures and the extra ``video`` is installed.
        private: Whether a new repository is.
        notify: Called with each message.

    Returns:
        The repository's page.

    Raises:
        ConfigurationError: If the repository's name is none, or a model of the registry is given.
        MissingExtra: If huggingface_hub is missing.
        RltrackError: If the hub refuses.
    """
    api = _hub().HfApi(endpoint=_endpoint())
    check_repository(repository)
    with tempfile.TemporaryDirectory() as scratch, exportable(root, what) as found:
        folder = Path(scratch)
        _write_files(found, folder, episodes, video, repository, notify)
        try:
            page = api.create_repo(repository, private=private or None, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{found.label}, by rltrack")
        except Exception as error:
            raise _refused(repository, error) from error
        return str(page)


def download(address: str, folder: Path) -> Path:
    """Download a model's files; nothing of them is loaded.

    Args:
        address: ``hf://ORG/NAME``, optionally ``@REVISION``.
        folder: Where to put them.

    Raises:
        ConfigurationError: If the address is none.
        MissingExtra: If huggingface_hub is missing.
        RltrackError: If the hub refuses.
    """
    repository, _, revision = address.removeprefix(ADDRESS).partition("@")
    hub = _hub()
    check_repository(repository)
    try:
        hub.snapshot_download(
            repository,
            revision=revision or None,
            local_dir=folder,
            allow_patterns=["*.zip", "*.yml", "*.pkl"],
            endpoint=_endpoint(),
        )
    except Exception as error:
        raise _refused(repository, error) from error
    return folder


def check_repository(name: str) -> None:
    """Raise `ConfigurationError` if this is no name of a repository."""
    if not _REPOSITORY.fullmatch(name):
        raise ConfigurationError(
            f"{name[:100]!r} is no repository of the hub. Write ORG/NAME, such as my-team/ppo-CartPole-v1."
        )


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra("The hub needs the package huggingface_hub: pip install 'rltrack[hub]'.") from None
    return huggingface_hub


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _refused(repository: str, error: Exception) -> RltrackError:
    text = " ".join(str(error).split())[:300]
    return RltrackError(
        f"The hub refuses {repository}: {text}. To log in: hf auth login, or HF_TOKEN in the environment."
    )


def _write_files(
    found: Exportable, folder: Path, episodes: int, video: bool, repository: str, notify: Callable[[str], None]
) -> None:
    from rltrack.agents.sb3_export import NORMALIZATION, how_to_load, write_sb3

    run, version = found.run, found.version
    if run is None or version is None:
        raise ConfigurationError(
            "Push a version of a run, RUN@version: its scores, curve and video are those of the run."
        )
    algorithm, env_id = found.config.agent.algorithm, found.config.environment.id
    model = folder / f"{algorithm.lower()}-{env_id.rpartition(':')[2].rpartition('/')[2]}.zip"
    files = write_sb3(found.model, model)
    code = how_to_load(found.model, Path(model.name), found.config.environment).replace(NORMALIZATION, _STATISTICS)
    if len(files) > 1:
        files[1].rename(folder / _STATISTICS)
    section = found.config.environment
    settings = {**found.config.agent.hyperparameters, "policy": found.config.agent.policy, "n_envs": section.n_envs}
    more = {"frame_stack": section.frame_stack, "normalize": bool(section.normalize)}
    plain = json.loads(json.dumps({**settings, **{key: value for key, value in more.items() if value}}, default=str))
    for name, data in (("config.yml", _as_zoo(plain)), ("args.yml", {"algo": algorithm.lower(), "env": env_id})):
        (folder / name).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    if section.kwargs:
        (folder / "env_kwargs.yml").write_text(yaml.safe_dump(dict(section.kwargs)), encoding="utf-8")
    notify(f"playing {episodes} episodes")
    _, evaluation = evaluate_run(run, version.name, episodes=episodes)
    scores = {"mean_reward": evaluation.mean, "std_reward": evaluation.std, "interval": list(evaluation.interval),
              "iqm": evaluation.iqm, "n_eval_episodes": episodes, "is_deterministic": True}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(scores, indent=2), encoding="utf-8")
    with tempfile.TemporaryDirectory() as drawn:
        curves = [
            path
            for path in draw_run(MetricsTracker.from_journal(run.journal_file), Path(drawn), run.name)
            if path.name == _CURVE
        ]
        for path in curves:
            (folder / _CURVE).write_bytes(path.read_bytes())
    has_video = video and _film(found, folder / "replay.mp4", notify)
    card = _card(repository, found, scores, code, has_curve=bool(curves), has_video=has_video)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _as_zoo(settings: dict[str, Any]) -> dict[str, Any]:
    """Schedules as rl_zoo3 writes them."""

    def written(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"linear"}:
            inner = value["linear"]
            return f"lin_{inner[0] if isinstance(inner, list) else inner}"
        return value

    return {key: written(value) for key, value in settings.items()}


def _film(found: Exportable, path: Path, notify: Callable[[str], None]) -> bool:
    assert found.run is not None
    assert found.version is not None
    try:
        film(found.run, path, path.with_suffix(".gif"), found.version.name)
    except Exception as error:  # a card without a video is a card
        notify(f"no video: {' '.join(str(error).split())[:200]}")
        return False
    finally:
        with cleaning_up("removing the animated picture"):
            path.with_suffix(".gif").unlink(missing_ok=True)
    return path.exists()


def _card(
    repository: str, found: Exportable, scores: Mapping[str, Any], code: str, *, has_curve: bool, has_video: bool
) -> str:
    algorithm, env_id = found.config.agent.algorithm, found.config.environment.id
    low, high = scores["interval"]
    value = f"{scores['mean_reward']:.2f} +/- {scores['std_reward']:.2f}"
    meta = {
        "library_name": "stable-baselines3",
        "tags": [env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "rltrack"],
        "model-index": [{"name": algorithm, "results": [{
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"name": env_id, "type": env_id},
            "metrics": [{"type": "mean_reward", "value": value, "name": "mean_reward", "verified": False}],
        }]}],
    }  # fmt: skip
    steps = "" if found.version is None else f", {found.version.env_steps:,} env steps"
    lines = [
        "---", yaml.safe_dump(meta, sort_keys=False).strip(), "---", "", f"# {algorithm} in {env_id}", "",
        f"Trained with rltrack and Stable-Baselines3: {found.label}{steps}.", "",
        "| mean return | 95 % interval of the mean | IQM | episodes |", "|---:|---:|---:|---:|",
        f"| {scores['mean_reward']:.6g} | {low:.6g} to {high:.6g} | {scores['iqm']:.6g} | {scores['n_eval_episodes']} |", "",
    ]  # fmt: skip
    if has_curve:
        lines += [f"![Learning curve]({_CURVE})", ""]
    if has_video:
        lines += ["A recorded episode: `replay.mp4`.", ""]
    lines += ["## Load it with Stable-Baselines3", "", f"The files are pickles: load them only if you trust {repository}.", "",
              "```python", code, "```", "", "## Go on with rltrack", "",
              "```bash", f"rltrack import {ADDRESS}{repository} --trust", "```", ""]  # fmt: skip
    return "\n".join(lines)
