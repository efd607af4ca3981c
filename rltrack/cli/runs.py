"""Commands that show and repair runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rltrack.cli.shared import (
    EXIT_ERROR,
    AsJson,
    RunAndVersion,
    RunName,
    app,
    deliver_left_behind,
    finite,
    print_json,
    state,
    the_root,
    working,
)
from rltrack.errors import ConfigurationError, RltrackError


@app.command(rich_help_panel="Runs")
def runs(as_json: AsJson = False) -> None:
    """List the runs under the root, with their status."""
    from rltrack.console.runs import print_runs, run_rows

    deliver_left_behind(the_root())
    rows = run_rows(the_root())
    print_json(rows) if as_json else print_runs(rows, the_root())


@app.command(rich_help_panel="Runs")
def show(run: RunName, as_json: AsJson = False) -> None:
    """Show one run: state, evaluations, versions, warnings.

    And where its numbers are.
    """
    from rltrack.console.runs import print_details, run_details

    deliver_left_behind(the_root())
    details = run_details(the_root().find(run))
    print_json(details) if as_json else print_details(details)


@app.command(rich_help_panel="Runs")
def journal(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until training ends or Ctrl-C.")] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only records of this kind; may be repeated.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as they are, for jq.")] = False,
) -> None:
    """Print what a run recorded.

    Metrics, episodes, evaluations, checkpoints, decisions, signals, errors.

    \b
    rltrack journal cartpole-ppo --kind evaluation --kind decision
    rltrack journal cartpole-ppo --follow
    rltrack journal cartpole-ppo --json | jq 'select(.kind == "metrics") | .values["train/loss"]'
    """
    from rltrack.console.records import print_journal

    print_journal(the_root().find(run), kinds=kind or (), follow=follow, as_json=as_json)


@app.command(rich_help_panel="Runs")
def sync(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's name.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run that is not delivered.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Deliver everything into a new MLflow run, as if for the first time.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="End the process that delivers it, such as one that hangs, and deliver in this process."
        ),
    ] = False,
) -> None:
    """Deliver to MLflow and TensorBoard what is missing there.

    After an outage or a crash.

    \b
    rltrack sync cartpole-ppo
    rltrack sync --all
    """
    from rltrack.console.deliveries import sync_runs

    if (run is None) is not everything:
        raise ConfigurationError("Name a run, or pass --all: `rltrack sync RUN` or `rltrack sync --all`.")
    if again and everything:
        raise ConfigurationError("--again is for one run: `rltrack sync RUN --again`.")
    root = the_root()
    if not sync_runs(root, None if run is None else root.find(run), again=again, take_over=take_over):
        raise typer.Exit(EXIT_ERROR)


@app.command(rich_help_panel="Runs")
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Last record longer ago than this: 30d, 12h, 2w.", show_default=False),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Runs of this study or sweep.", show_default=False)] = None,
    match: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Runs of such names: 'test-*'.", show_default=False)
    ] = None,
    below: Annotated[
        float | None,
        typer.Option(metavar="SCORE", callback=finite, help="Best mean return less than this.", show_default=False),
    ] = None,
    keep_best: Annotated[
        int | None, typer.Option(min=0, help="Keep this many of the best of them.", show_default=False)
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also runs that can still be resumed.")] = False,
    whole: Annotated[
        bool,
        typer.Option(
            "--runs", help="Whole runs, with remote copies and MLflow runs; default: only what a resume needs."
        ),
    ] = False,
    registry_gone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="An MLflow that no longer exists, with its models; it is not queried. May be repeated.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only show what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old runs, or what only a resume needs of them.

    Shows what would be deleted; deletes with --yes. Runs from which a registered model comes are kept.

    \b
    rltrack prune --older-than 30d
    rltrack prune --study cartpole-sweep --keep-best 3 --runs --yes
    """
    from rltrack.console.runs import print_prunable
    from rltrack.registry import pruning
    from rltrack.tracking.shipper import prepare_process

    prepare_process()
    gone = registry_gone or ()
    age = None if older_than is None else pruning.parse_age(older_than)
    wanted = pruning.RunFilter(age, study, match, below, keep_best, unfinished)
    with working("looking at the runs"):
        found = pruning.find_prunable(the_root(), wanted, whole=whole, gone=gone)
    if as_json:
        print_json(
            [{"run": item.run.name, "bytes": item.bytes, "score": item.score, "kept": item.kept} for item in found]
        )
    else:
        print_prunable(found, whole=whole, done=yes)
    if yes:
        failed = pruning.prune(
            the_root(), found, whole=whole, gone=gone, notify=lambda text: typer.echo(text, err=True)
        )
        if failed:
            raise typer.Exit(EXIT_ERROR)


@app.command(rich_help_panel="Runs")
def ui(
    port: Annotated[
        int, typer.Option("--mlflow-port", "--port", help="Port of MLflow's page; 0 for any free one.")
    ] = 5000,
    tensorboard_port: Annotated[int, typer.Option(help="Port of TensorBoard; 0 for any free one.")] = 6006,
) -> None:
    """Serve MLflow's page and TensorBoard until Ctrl-C.

    MLflow's page shows this root's database. Both answer on this machine only.
    """
    from rltrack.ui import serve

    root = the_root()
    deliver_left_behind(root)
    serve(root, port=port, tensorboard_port=tensorboard_port, notify=typer.echo)


@app.command(rich_help_panel="Runs")
def checkpoints(
    run: RunName,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its SHA-256.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what the run's checkpoints.keep_* no longer keep.")
    ] = False,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="VERSION", help="Keep a version permanently: v12, best or env steps.")
    ] = None,
    unpin: Annotated[list[str] | None, typer.Option(metavar="VERSION", help="Undo --pin.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a run's versions; verify, prune or pin them.

    \b
    rltrack checkpoints cartpole-ppo
    rltrack checkpoints cartpole-ppo --verify
    rltrack checkpoints cartpole-ppo --pin v12 --prune
    """
    from rltrack.console.checkpoints import checkpoint_rows, print_checkpoints

    found = the_root().find(run)
    with working("reading the versions"):
        rows, problems = checkpoint_rows(found, verify=verify, prune=prune, pin=pin or (), unpin=unpin or ())
    print_json(rows) if as_json else print_checkpoints(rows, problems, verified=verify)
    if problems or any(row["problem"] for row in rows):
        raise typer.Exit(EXIT_ERROR)


@app.command("eval", rich_help_panel="Runs")
def evaluate(
    run: RunAndVersion,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 100,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of the episodes; default: ones that training never evaluated on.", show_default=False
        ),
    ] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions instead of using the mode of the policy.")
    ] = False,
    target: Annotated[
        float | None,
        typer.Option(callback=finite, help="Return of an optimal agent, for the optimality gap.", show_default=False),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Number of environments in separate processes, for expensive steps.", show_default=False),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:NAME",
            help="Makes the environment, if the run's script did not name it; stored for later commands.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a version's policy.

    Plays episodes in fresh environments, and prints statistics of the returns.
    """
    from rltrack.console.summary import print_evaluation
    from rltrack.evaluation.statistics import bootstrap_interval, optimality_gap
    from rltrack.runs import RunRef
    from rltrack.training.trainer import evaluate_run

    ref = RunRef.parse(run)
    with working(f"playing {episodes} episodes"):
        found, evaluation = evaluate_run(
            the_root().find(ref.run),
            ref.version or "best",
            episodes=episodes,
            seed=seed,
            deterministic=not stochastic,
            processes=processes,
            env_id=env,
        )
    record = {"run": ref.run, "version": found.name, "env_steps": found.env_steps, **evaluation.to_record()}
    record["iqm_interval"] = list(bootstrap_interval(evaluation.returns, statistic="iqm"))
    if target is not None:
        record |= {"target": target, "optimality_gap": optimality_gap(evaluation.returns, target)}
    print_json(record) if as_json else print_evaluation(record)


@app.command(rich_help_panel="Runs")
def plot(
    run: RunName,
    output: Annotated[
        Path | None, typer.Option(help="Folder; default: the run's exports/.", show_default=False)
    ] = None,
) -> None:
    """Draw a run's plots. Several runs in one: rltrack compare."""
    from rltrack.tracking.metrics import MetricsTracker
    from rltrack.tracking.plots import draw_run

    found = the_root().find(run)
    with working("drawing"):
        paths = draw_run(MetricsTracker.from_journal(found.journal_file), output or found.exports, run)
    if not paths:
        raise RltrackError(f"Run {run} has nothing to draw yet.")
    for path in paths:
        typer.echo(path)


@app.command(rich_help_panel="Runs")
def relocate() -> None:
    """Repair MLflow's paths after the root was moved."""
    from rltrack.tracking.sinks.relocation import relocate as repair

    root = the_root()
    found = repair(root)
    if found is None:
        typer.echo(f"Nothing to repair: the paths under {root.path} are right.")
    else:
        typer.echo(f"The root was {found[0]} and is {root.path}: {found[1]} entries were repaired.")
        deliver_left_behind(root)


@app.command(rich_help_panel="Runs")
def doctor() -> None:
    """Check the installation; report problems and remedies.

    Versions, GPU, servers and extras.
    """
    from rltrack import doctor as examination

    if not examination.print_report(state.root):
        raise typer.Exit(EXIT_ERROR)
