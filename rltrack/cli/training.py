"""Commands that train."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rltrack.cli.options import Overrides, TrainingOptions, takes_training
from rltrack.cli.shared import (
    EXIT_ERROR,
    EXIT_STOPPED,
    AsJson,
    RunName,
    app,
    deliver_left_behind,
    flow,
    print_json,
    state,
    the_root,
    working,
)
from rltrack.errors import ConfigurationError

if TYPE_CHECKING:
    from rltrack.config import TrainingConfig
    from rltrack.runs import RunDirectory
    from rltrack.training.progress import TrainingStatistics

DELIVERY_SECONDS = 120.0


@app.command(rich_help_panel="Training")
@takes_training()
def train(asked: TrainingOptions) -> None:
    """Train an agent from a configuration or a few options.

    \b
    rltrack train configs/cartpole_ppo.yaml
    rltrack train configs/cartpole_ppo.yaml --set seed=1 --set training.total_timesteps=50000
    rltrack train --algo ppo --env CartPole-v1 --timesteps 100000 --seed 0
    rltrack train --from cartpole-ppo@best --timesteps 50000
    """
    _train(asked.resolve())


@flow.command("train")
@takes_training()
def flow_train(asked: TrainingOptions) -> None:
    """Train an agent as a Prefect flow in this process.

    The same as `rltrack train`, bit for bit, with retries and a page.

    The server is PREFECT_API_URL's if it is set, else one of rltrack's own, which ends by itself.

    \b
    rltrack flow train configs/cartpole_ppo.yaml
    """
    from rltrack.flows import client

    resolved = asked.resolve()
    deliver_left_behind(the_root())
    try:
        outcome = client.train(resolved, the_root().path, functools.partial(working, aloud=True))
    except KeyboardInterrupt:  # once it trains, the loop handles Ctrl-C itself
        _interrupted_before_training()
    _print_end(outcome.directory, outcome.statistics, outcome.was_finished)


@app.command(rich_help_panel="Training")
def init(
    algo: Annotated[str, typer.Option("--algo", help="Algorithm, such as ppo, sac or tqc.", show_default=False)],
    env: Annotated[str, typer.Option("--env", help="Environment id, such as CartPole-v1.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="File to write; default: named after algorithm and environment; - prints it."
        ),
    ] = None,
    timesteps: Annotated[int | None, typer.Option(help="Budget in env steps.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a first configuration with every key explained.

    \b
    rltrack init --algo ppo --env CartPole-v1
    rltrack init --algo sac --env Pendulum-v1 pendulum.yaml && rltrack train pendulum.yaml
    """
    from rltrack.runs import run_stem
    from rltrack.starter import starter

    text = starter(algo, env, timesteps=timesteps)
    if str(output) == "-":
        typer.echo(text, nl=False)
        return
    path = output or Path(f"{run_stem(f'{algo}-{env}')}.yaml")
    if path.exists() and not force:
        raise ConfigurationError(f"{path} exists. Name another file, or write over it with --force.")
    path.write_text(text, encoding="utf-8")
    typer.echo(f"{path} is written. Train: rltrack train {path}")


@app.command(rich_help_panel="Training")
def resume(
    run: RunName,
    overrides: Overrides = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Fetch the run from this remote store first, if it was resumed elsewhere.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Resume a run from its newest version.

    \b
    rltrack resume cartpole-ppo
    rltrack resume cartpole-ppo --set training.memory_limit_mb=4000
    rltrack resume cartpole-ppo --store s3://bucket/runs
    """
    from rltrack.config import TrainingConfig
    from rltrack.plain_data import apply_overrides
    from rltrack.training.trainer import config_of

    if store is not None:
        from rltrack.training.fetching import fetch

        fetch(the_root(), run, store)
        overrides = [*(overrides or []), f"checkpoints.store={store}"]
    found = the_root().find(run)
    data = config_of(found).to_mapping()
    _train(TrainingConfig.from_mapping({**apply_overrides(data, overrides or []), "name": run}, source=f"run {run}"))


@app.command("verify-resume", rich_help_panel="Training")
@takes_training(without=("name", "timesteps", "seed", "start_from"))
def verify_resume(
    asked: TrainingOptions,
    timesteps: Annotated[
        int | None,
        typer.Option(min=1, help="Env steps; default: a few iterations after any warm-up.", show_default=False),
    ] = None,
    kills: Annotated[int, typer.Option(min=1, help="How often to kill the second training.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show that a resume is exact in every bit.

    Trains once without and once with kills, and compares.

    \b
    rltrack verify-resume configs/cartpole_ppo.yaml
    rltrack verify-resume --algo sac --env Pendulum-v1 --kills 3
    """
    import dataclasses

    from rltrack.training.verify import verify_resume as verify

    resolved = asked.resolve()
    found = verify(resolved, timesteps=timesteps, kills=kills, notify=lambda text: typer.echo(text, err=True))
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        for note in found.notes:
            typer.echo(f"note: {note}")
        what = f"{found.env_steps:,} env steps, {found.kills} kills, {found.compared:,} leaves, environments by {found.tier}"
        typer.echo(
            f"exact: {what}" if found.difference is None else f"NOT exact: {what}\nfirst difference: {found.difference}"
        )
    if found.difference is not None:
        raise typer.Exit(EXIT_ERROR)


@app.command("config", rich_help_panel="Training")
@takes_training(without=("start_from",))
def show_config(
    asked: TrainingOptions,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a configuration.")] = False,
    from_run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Print the configuration of this run, also of one from a script.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a configuration with every default.

    Also that of a run, or the JSON Schema.

    \b
    rltrack config configs/cartpole_ppo.yaml
    rltrack config --from-run my-script > my-script.yaml
    """
    from rltrack.config import TrainingConfig

    if schema:
        print_json(TrainingConfig.model_json_schema())
        return
    if from_run is not None:
        from rltrack.training.trainer import config_of

        if asked.config is not None:
            raise ConfigurationError(f"Both the file {asked.config} and the run {from_run} are given; leave one out.")
        data = {**config_of(the_root().find(from_run)).to_mapping(), "name": None}
        found = TrainingConfig.from_mapping(asked.over(data), source=f"run {from_run}")
        for line in found.script_only:
            typer.echo(f"# Only the script has: {line}")
        typer.echo(found.model_copy(update={"script_only": []}).to_yaml(), nl=False)
        return
    resolved = asked.resolve()
    from rltrack.agents.factory import check

    check(resolved)
    typer.echo(resolved.to_yaml(), nl=False)


def _train(config: TrainingConfig) -> None:
    with working("getting ready"):
        from rltrack.console.deliveries import wait_for_delivery
        from rltrack.training.reporter import ProgressReporter
        from rltrack.training.trainer import Trainer

        deliver_left_behind(the_root())
        trainer = Trainer(config, root=state.root, reporter=ProgressReporter(console=True))
    try:
        statistics = trainer.train()
    except KeyboardInterrupt:  # once it trains, the loop handles Ctrl-C itself
        _interrupted_before_training()
    run = trainer.run_directory
    assert run is not None, "a training that ended has a run"
    wait_for_delivery(run, trainer.loop.wait_for_tracking, DELIVERY_SECONDS)
    _print_end(run, statistics, trainer.loop.was_finished)


def _interrupted_before_training() -> NoReturn:
    typer.echo("Interrupted before training began; nothing was changed.", err=True)
    raise typer.Exit(EXIT_STOPPED) from None


def _print_end(run: RunDirectory, statistics: TrainingStatistics, was_finished: bool) -> None:
    """Say how a training ended; exit code 3 if it was stopped."""
    from rltrack.console.summary import print_summary
    from rltrack.tracking.bookmark import is_delivered
    from rltrack.training.progress import TrainingState

    print_summary(run, statistics, is_delivered(run))
    if was_finished:
        typer.echo(
            "\nThis run was finished before; nothing was trained. For a new one give another --name or --set seed=…."
        )
    if statistics.state is TrainingState.STOPPED:
        raise typer.Exit(EXIT_STOPPED)
