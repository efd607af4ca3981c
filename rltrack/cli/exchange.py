"""Commands that exchange policies with other programs: export, import, push."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from rltrack.cli.shared import RunAndVersion, app, the_root
from rltrack.errors import ConfigurationError

_PANEL = "Models"
_HISTORY, _POLICIES = ("csv", "json"), {"sb3": ".zip", "onnx": ".onnx"}


@app.command(rich_help_panel=_PANEL)
def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@VERSION]",
            help="A run's name (`rltrack runs` lists them) and version (best); or MODEL@champion.",
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            help="Of its history: csv (one row per value), json (metrics, episodes, evaluations). Of its policy: sb3 (for plain "
            "Stable-Baselines3), onnx."
        ),
    ] = "csv",
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write; default: in the run's exports/; of a registered model, here.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write a run's history or its policy to a file.

    The policy in formats of other programs.

    \b
    rltrack export cartpole-ppo --format csv
    rltrack export cartpole-ppo@best --format sb3 --output cartpole.zip
    rltrack export cartpole@champion --format onnx --output cartpole.onnx
    """
    _refuse_to_overwrite(output, force)
    if format in _HISTORY:
        typer.echo(_export_history(what, format, output))
        return
    if format not in _POLICIES:
        raise ConfigurationError(f"Unknown format '{format}'. Allowed: {', '.join((*_HISTORY, *_POLICIES))}.")
    from rltrack.registry.exchange import exportable
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    with exportable(the_root(), what) as found:
        folder = Path() if found.run is None else found.run.exports
        path = output or folder / f"{found.label.replace('@', '-')}{_POLICIES[format]}"
        if found.run is None:
            _refuse_to_overwrite(path, force)
        if format == "onnx":
            from rltrack.agents.onnx_export import write_onnx

            typer.echo(write_onnx(found.model, path))
            return
        from rltrack.agents.sb3_export import NORMALIZATION, how_to_load, write_sb3

        is_ours = output is None and found.run is not None
        if not is_ours and found.model.get_vec_normalize_env() is not None:
            _refuse_to_overwrite(path.parent / NORMALIZATION, force)
        for written in write_sb3(found.model, path):
            typer.echo(written)
        typer.echo(f"\n{how_to_load(found.model, path, found.config.environment)}", err=True)


def _refuse_to_overwrite(path: Path | None, force: bool) -> None:
    """Refuse an existing file outside a run's exports/; those in it are written over."""
    if path is not None and path.exists() and not force:
        raise ConfigurationError(f"{path} exists. Name another --output, or write over it with --force.")


def _export_history(what: str, format: str, output: Path | None) -> Path:
    from rltrack.tracking.metrics import MetricsTracker

    if "@" in what:
        raise ConfigurationError(
            f"The history is that of a whole run: rltrack export {what.partition('@')[0]} --format {format}. For the policy of a "
            "version: --format sb3."
        )
    found = the_root().find(what)
    metrics = MetricsTracker.from_journal(found.journal_file)
    return (metrics.export_csv if format == "csv" else metrics.export_json)(
        output or found.exports / f"metrics.{format}"
    )


@app.command("import", rich_help_panel=_PANEL)
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A zip of model.save(), or a log folder of rl_zoo3 (logs/ppo/CartPole-v1_1)."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="The run's name; default: by algorithm and environment.", show_default=False),
    ] = None,
    algo: Annotated[
        str | None, typer.Option("--algo", help="Algorithm, if the files do not name it.", show_default=False)
    ] = None,
    env: Annotated[
        str | None, typer.Option("--env", help="Environment id, if the files do not name it.", show_default=False)
    ] = None,
    vecnormalize: Annotated[
        Path | None,
        typer.Option("--vecnormalize", help="VecNormalize's pickle; default: next to the model.", show_default=False),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="You trust the origin of these files: loading them runs code in them.")
    ] = False,
) -> None:
    """Make a run from an agent that SB3 or rl_zoo3 trained.

    It can be evaluated, promoted, served and trained further.

    \b
    rltrack import cartpole.zip --algo ppo --env CartPole-v1 --name from-zip --trust
    rltrack import logs/ppo/CartPole-v1_1 --trust
    rltrack import hf://sb3/ppo-CartPole-v1 --trust
    """
    from rltrack.training.importing import import_agent
    from rltrack.zoo_logs import find_agent_files

    def notify(text: str) -> None:
        typer.echo(text, err=True)

    from rltrack.registry.hub import ADDRESS, download

    with tempfile.TemporaryDirectory() as scratch:
        path = download(source, Path(scratch)) if source.startswith(ADDRESS) else Path(source)
        files = find_agent_files(path, algo, env, vecnormalize)
        run = import_agent(files, root=the_root().path, name=name, trust=trust, notify=notify)
    typer.echo(f"{run.name}@{run.store().find('last').name}")


@app.command(rich_help_panel=_PANEL)
def push(
    what: RunAndVersion,
    hub: Annotated[str, typer.Option("--hub", metavar="ORG/NAME", help="Repository on the Hugging Face hub.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes for the scores of the model card.")] = 100,
    video: Annotated[bool, typer.Option(help="Record an episode.")] = True,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a policy to the Hugging Face hub.

    With a model card: scores, curve, video, how to load it.

    \b
    rltrack push cartpole-ppo@best --hub my-team/ppo-CartPole-v1
    """
    from rltrack.registry.hub import push as upload

    typer.echo(
        upload(
            the_root(), what, hub, episodes=episodes, video=video, private=private,
            notify=lambda text: typer.echo(text, err=True),
        )
    )  # fmt: skip
