"""The command line. Each command is a thin door to the library; only here is anything printed.

Exit codes: 0 done, 1 error, 2 usage, 3 stopped by a person or a signal with a checkpoint (can be resumed).
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rltrack.errors import ConfigurationError, MissingExtra, NameTaken, RltrackError

if TYPE_CHECKING:
    from rltrack.config import TrainingConfig
    from rltrack.runs import Root, RunDirectory
    from rltrack.training.progress import TrainingStatistics

EXIT_ERROR, EXIT_USAGE, EXIT_STOPPED = 1, 2, 3
DELIVERY_SECONDS = 120.0

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train reinforcement-learning agents, keep every number, and go on after anything.\n\n"
    "Try: rltrack train --algo ppo --env CartPole-v1 --timesteps 20000",
)
benchmark = typer.Typer(
    no_args_is_help=True, help="Benchmarks, with the commands that made the documentation's tables."
)
flow = typer.Typer(no_args_is_help=True, help="The same work as Prefect flows, with retries, schedules and a page.")
app.add_typer(flow, name="flow")
app.add_typer(benchmark, name="benchmark")

ConfigFile = Annotated[
    Path | None, typer.Argument(help="YAML or JSON file; examples are in configs/.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as training.eval_freq=5000."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name; `rltrack runs` lists them.")]
RunAndVersion = Annotated[
    str, typer.Argument(metavar="RUN[@VERSION]", help="A run's name, and best (default), last, v12 or env steps.")
]
NewRunName = Annotated[
    str | None, typer.Option("--name", help="The run's name; one that exists goes on.", show_default=False)
]
Algorithm = Annotated[
    str | None, typer.Option("--algo", help="Algorithm, such as ppo, sac or tqc.", show_default=False)
]
EnvId = Annotated[str | None, typer.Option("--env", help="Environment id, such as CartPole-v1.", show_default=False)]
Timesteps = Annotated[int | None, typer.Option("--timesteps", help="Budget in env steps.", show_default=False)]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", show_default=False)]
StartFrom = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="RUN[@VERSION]", help="Begin a new run with that version's policy.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class _State:
    root: Path | None = None


@app.callback()
def _main(
    root: Annotated[
        Path | None, typer.Option(help="Folder of all runs; default: $RLTRACK_ROOT or ./mlruns.", show_default=False)
    ] = None,
) -> None:
    _State.root = root


@app.command()
def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    name: NewRunName = None,
    algo: Algorithm = None,
    env: EnvId = None,
    timesteps: Timesteps = None,
    seed: Seed = None,
    start_from: StartFrom = None,
) -> None:
    """Train an agent, from a configuration or from a few options.

    \b
    rltrack train configs/cartpole_ppo.yaml
    rltrack train configs/cartpole_ppo.yaml --set seed=1 --set training.total_timesteps=50000
    rltrack train --algo ppo --env CartPole-v1 --timesteps 100000 --seed 0
    rltrack train --from cartpole-ppo@best --timesteps 50000
    """
    _train(_configuration(config, overrides or [], name, algo, env, timesteps, seed, start_from))


@flow.command("train")
def flow_train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    name: NewRunName = None,
    algo: Algorithm = None,
    env: EnvId = None,
    timesteps: Timesteps = None,
    seed: Seed = None,
    start_from: StartFrom = None,
) -> None:
    """Train an agent as a Prefect flow in this process: the same as `rltrack train`, bit for bit, with retries and a page.

    The server is PREFECT_API_URL's if it is set, else one of rltrack's own, which ends by itself.

    \b
    rltrack flow train configs/cartpole_ppo.yaml
    """
    from flows import door

    resolved = _configuration(config, overrides or [], name, algo, env, timesteps, seed, start_from)
    _deliver_left_behind(_root())
    try:
        training = door.train(resolved, _root().path, lambda text: typer.echo(text, err=True))
    except KeyboardInterrupt:  # once it trains, the loop hears Ctrl-C itself
        _interrupted_before_training()
    _print_end(training.directory, training.statistics, training.was_finished)


@app.command()
def resume(
    run: RunName,
    overrides: Overrides = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Fetch the run from this remote store first, if it went on elsewhere.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Go on with a run from its newest version.

    \b
    rltrack resume cartpole-ppo
    rltrack resume cartpole-ppo --set training.memory_limit_mb=4000
    rltrack resume cartpole-ppo --store s3://bucket/runs
    """
    from rltrack.config import TrainingConfig, apply_overrides
    from rltrack.training.trainer import config_of

    if store is not None:
        from rltrack.training.fetching import fetch

        fetch(_root(), run, store)
        overrides = [*(overrides or []), f"checkpoints.store={store}"]
    found = _root().find(run)
    data = config_of(found).to_mapping()
    _train(TrainingConfig.from_mapping({**apply_overrides(data, overrides or []), "name": run}, source=f"run {run}"))


@app.command()
def runs(as_json: AsJson = False) -> None:
    """List the runs under the root, with how they stand."""
    from rltrack import console

    _deliver_left_behind(_root())
    rows = console.run_rows(_root())
    _print_json(rows) if as_json else console.print_runs(rows, _root())


@app.command()
def show(run: RunName, as_json: AsJson = False) -> None:
    """Show one run: state, evaluations, versions, warnings, where its numbers are."""
    from rltrack import console

    _deliver_left_behind(_root())
    details = console.run_details(_root().find(run))
    _print_json(details) if as_json else console.print_details(details)


@app.command()
def journal(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until training ends or Ctrl-C.")] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only records of this kind; may be repeated.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as they are, for jq.")] = False,
) -> None:
    """Print what a run recorded: metrics, episodes, evaluations, checkpoints, decisions, signals, errors.

    \b
    rltrack journal cartpole-ppo --kind evaluation --kind decision
    rltrack journal cartpole-ppo --follow
    rltrack journal cartpole-ppo --json | jq 'select(.kind == "metrics") | .values["train/loss"]'
    """
    from rltrack.console import print_journal

    print_journal(_root().find(run), kinds=kind or (), follow=follow, as_json=as_json)


@app.command()
def sync(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's name.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run that is not delivered.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Deliver everything into a new MLflow run, as if for the first time.")
    ] = False,
) -> None:
    """Deliver to MLflow and TensorBoard what was not delivered: after an outage, or when everything died at once.

    \b
    rltrack sync cartpole-ppo
    rltrack sync --all
    """
    from rltrack import console

    if (run is None) is not everything:
        raise ConfigurationError("Name a run, or pass --all: `rltrack sync RUN` or `rltrack sync --all`.")
    if again and everything:
        raise ConfigurationError("--again is for one run: `rltrack sync RUN --again`.")
    root = _root()
    if not console.sync_runs(root, None if run is None else root.find(run), again=again):
        raise typer.Exit(EXIT_ERROR)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of MLflow's page; 0 for any free one.")] = 5000,
    tensorboard_port: Annotated[int, typer.Option(help="Port of TensorBoard; 0 for any free one.")] = 6006,
) -> None:
    """Open MLflow's page on the right database, and TensorBoard; both on this machine only, until Ctrl-C."""
    from rltrack.ui import serve

    root = _root()
    _deliver_left_behind(root)
    serve(root, port=port, tensorboard_port=tensorboard_port, tell=typer.echo)


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=0, help="Worker processes that carry out deployments' runs.")] = 1,
    with_worker: Annotated[bool, typer.Option("--with-worker", help="The same as --workers 1.")] = False,
    database_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="RLTRACK_DATABASE_URL",
            show_default=False,
            help="postgresql://user@host/name for both servers' databases; default: sqlite under the root.",
        ),
    ] = None,
    prefect_port: Annotated[
        int | None, typer.Option(help="Of Prefect's page; default 4200.", show_default=False)
    ] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="Of MLflow's page; default 5000.", show_default=False)] = None,
    tensorboard_port: Annotated[
        int | None, typer.Option(help="Of TensorBoard; default 6006.", show_default=False)
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until SIGTERM or Ctrl-C, as for systemd.")
    ] = False,
) -> None:
    """Start the whole stack on this machine: Prefect, MLflow, TensorBoard, workers, deployments. It stays until `down`.

    \b
    rltrack up
    prefect deployment run train/train
    rltrack down
    """
    from flows import stack

    chosen = {"prefect": prefect_port, "mlflow": mlflow_port, "tensorboard": tensorboard_port}
    ports = {name: stack.PORTS[name] if port is None else port for name, port in chosen.items()}
    options = stack.Options(max(workers, int(with_worker)), database_url, ports)
    root = _root()
    asked_for = frozenset(name for name, port in chosen.items() if port is not None)
    stack.up(root, options, lambda text: typer.echo(text, err=True), chosen_ports=asked_for, foreground=foreground)
    if not foreground:
        _print_stack(root, as_json=False)
        typer.echo(f"\nFor the `prefect` command: export PREFECT_API_URL={stack.api_address(root)}")


@app.command()
def down() -> None:
    """End the stack: running flows are suspended at a boundary, with a version, and go on after the next `up`."""
    from flows import stack

    root = _root()
    was_up = stack.down(root, lambda text: typer.echo(text, err=True))
    typer.echo("The stack is down." if was_up else f"There is no stack under {root.path}.")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Say which parts of the stack are healthy, and where they answer. Exit code 1 if one is not."""
    if not _print_stack(_root(), as_json):
        raise typer.Exit(EXIT_ERROR)


@app.command()
def deploy() -> None:
    """Make or update deployments, work pool and automations: on PREFECT_API_URL's server, or on that of the stack here."""
    from flows import deployments, door

    with door.given_server(_root().path):
        for name in deployments.apply():
            typer.echo(name)


def _print_stack(root: Root, as_json: bool) -> bool:
    from flows import stack
    from rltrack import console

    rows = stack.status(root)
    _print_json(rows) if as_json else console.print_stack(rows)
    return all(row["healthy"] for row in rows)


@app.command()
def relocate() -> None:
    """Repair the paths in the root's MLflow database after the root was moved or renamed."""
    from rltrack.tracking.sinks.embedded import relocate as repair

    root = _root()
    found = repair(root)
    if found is None:
        typer.echo(f"Nothing to repair: the paths under {root.path} are right.")
    else:
        typer.echo(f"The root was {found[0]} and is {root.path}: {found[1]} entries were repaired.")


@app.command()
def checkpoints(
    run: RunName,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its SHA-256.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what the run's checkpoints.keep_* no longer keep.")
    ] = False,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="VERSION", help="Keep a version for good: v12, best or env steps.")
    ] = None,
    unpin: Annotated[list[str] | None, typer.Option(metavar="VERSION", help="Leave it to retention again.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a run's versions; verify, prune or pin them.

    \b
    rltrack checkpoints cartpole-ppo
    rltrack checkpoints cartpole-ppo --verify
    rltrack checkpoints cartpole-ppo --pin v12 --prune
    """
    from rltrack import console

    found = _root().find(run)
    rows, problems = console.checkpoint_rows(found, verify=verify, prune=prune, pin=pin or (), unpin=unpin or ())
    _print_json(rows) if as_json else console.print_checkpoints(rows, problems, verified=verify)
    if problems or any(row["problem"] for row in rows):
        raise typer.Exit(EXIT_ERROR)


@app.command("verify-resume")
def verify_resume(
    config: ConfigFile = None,
    overrides: Overrides = None,
    algo: Annotated[str | None, typer.Option(help="Algorithm, such as ppo.", show_default=False)] = None,
    env: Annotated[str | None, typer.Option(help="Environment id.", show_default=False)] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(min=1, help="Env steps; default: a few iterations after any warm-up.", show_default=False),
    ] = None,
    kills: Annotated[int, typer.Option(min=1, help="How often to kill the second training.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show that a resume is exact: train whole, train again with kills, and compare bit by bit.

    \b
    rltrack verify-resume configs/cartpole_ppo.yaml
    rltrack verify-resume --algo sac --env Pendulum-v1 --kills 3
    """
    import dataclasses

    from rltrack.training.verify import verify_resume as verify

    resolved = _configuration(config, overrides or [], None, algo, env, None, None)
    found = verify(resolved, timesteps=timesteps, kills=kills, tell=lambda text: typer.echo(text, err=True))
    if as_json:
        _print_json(dataclasses.asdict(found))
    else:
        for note in found.notes:
            typer.echo(f"note: {note}")
        what = f"{found.env_steps:,} env steps, {found.kills} kills, {found.compared:,} leaves, environments by {found.tier}"
        typer.echo(
            f"exact: {what}" if found.difference is None else f"NOT exact: {what}\nfirst difference: {found.difference}"
        )
    if found.difference is not None:
        raise typer.Exit(EXIT_ERROR)


@app.command("eval")
def evaluate(
    run: RunAndVersion,
    episodes: Annotated[int, typer.Option(help="Episodes to play.")] = 100,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the episodes; default: ones that training never evaluated on.", show_default=False),
    ] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Act by a sample of the policy, not by its mode.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Play a version's policy in fresh environments, and print the statistics of its returns."""
    from rltrack import console
    from rltrack.training.trainer import evaluate_run

    name, _, version = run.partition("@")
    found, evaluation = evaluate_run(
        _root().find(name), version or "best", episodes=episodes, seed=seed, deterministic=not stochastic
    )
    record = {"run": name, "version": found.name, "env_steps": found.env_steps, **evaluation.to_record()}
    _print_json(record) if as_json else console.print_evaluation(record)


@app.command()
def export(
    run: RunName,
    format: Annotated[
        str, typer.Option(help="csv (one row per value) or json (metrics, episodes, evaluations).")
    ] = "csv",
    output: Annotated[
        Path | None, typer.Option(help="File to write; default: in the run's exports/.", show_default=False)
    ] = None,
) -> None:
    """Write a run's whole history to a file."""
    from rltrack.tracking.metrics import MetricsTracker

    if format not in ("csv", "json"):
        raise ConfigurationError(f"Unknown format '{format}'. Allowed: csv, json.")
    found = _root().find(run)
    metrics = MetricsTracker.from_journal(found.journal_file)
    path = output or found.exports / f"metrics.{format}"
    typer.echo((metrics.export_csv if format == "csv" else metrics.export_json)(path))


@app.command()
def plot(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="One run, or several to compare.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder (one run) or PNG file (several).", show_default=False)
    ] = None,
) -> None:
    """Draw a run's plots, or the learning curves of several runs in one."""
    from rltrack.tracking.metrics import MetricsTracker
    from rltrack.tracking.plots import draw_comparison, draw_run

    found = [_root().find(name) for name in names]
    histories = [(run.name, MetricsTracker.from_journal(run.journal_file)) for run in found]
    if len(found) == 1:
        paths = draw_run(histories[0][1], output or found[0].exports, names[0])
        if not paths:
            raise RltrackError(f"Run {names[0]} has nothing to draw yet.")
    else:
        paths = [draw_comparison(histories, output or Path("comparison.png"))]
    for path in paths:
        typer.echo(path)


@app.command("config")
def show_config(
    config: ConfigFile = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a configuration.")] = False,
    name: NewRunName = None,
    algo: Algorithm = None,
    env: EnvId = None,
    timesteps: Timesteps = None,
    seed: Seed = None,
) -> None:
    """Print a configuration as it is resolved, with every default; or the schema."""
    from rltrack.config import TrainingConfig

    if schema:
        _print_json(TrainingConfig.model_json_schema())
        return
    resolved = _configuration(config, overrides or [], name, algo, env, timesteps, seed)
    from rltrack.agents.factory import check

    check(resolved)
    typer.echo(resolved.to_yaml(), nl=False)


@app.command()
def doctor() -> None:
    """Look at versions, GPU, servers and extras, and say what is missing and how to get it."""
    from rltrack import doctor as examination

    if not examination.print_report(_State.root):
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def scores(
    configs: Annotated[Path, typer.Option(help="Folder of the configurations.")] = Path("configs"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, 2, … for each case.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, one core each.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Only this configuration; may be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.", show_default=False)] = None,
) -> None:
    """Train the tuned settings over several seeds, and compare with rl_zoo3's published scores.

    Goes on where it was interrupted. All five cases with five seeds take about an hour of two cores.
    """
    from rltrack.benchmarks.scores import as_markdown, run_scores

    rows = run_scores(
        configs, _root(), seeds=seeds, jobs=jobs, only=only or (), tell=lambda text: typer.echo(text, err=True)
    )
    text = as_markdown(rows, "rltrack benchmark scores")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    typer.echo(text)
    if not all(row["passed"] for row in rows):
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def pause(
    repeats: Annotated[int, typer.Option(min=1, help="Checkpoints of each case.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Measure how long training pauses for a checkpoint, against SB3's own save. Takes a minute, on an idle machine."""
    import dataclasses

    from rltrack.benchmarks.pause import as_markdown, measure_pauses

    rows = measure_pauses(repeats)
    _print_json([dataclasses.asdict(row) for row in rows]) if as_json else typer.echo(as_markdown(rows))
    if not all(row.passed for row in rows):
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def overhead(
    only: Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings of each case, bare and with rltrack.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.", show_default=False)] = None,
) -> None:
    """Measure what tracking costs a training, against SB3 alone, its TensorBoard writer and its MLflow recipe.

    All cases take about an hour and a quarter, on an idle machine.
    """
    from rltrack.benchmarks.overhead import as_markdown, measure_overhead

    rows = measure_overhead(only or (), trials=trials, tell=lambda text: typer.echo(text, err=True))
    text = as_markdown(rows, "rltrack benchmark overhead")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    typer.echo(text)
    if not all(row.passed for row in rows):
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def delivery(
    records: Annotated[int, typer.Option(min=1000, help="Records of the long journal.")] = 1_000_000,
) -> None:
    """Measure the speed of delivery, and the memory of trainer and shipper over a long journal. Takes about five minutes."""
    from rltrack.benchmarks import delivery as measured

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    rate = measured.measure_rate()
    memories = [measured.measure_shipper_memory(records, tell), measured.measure_trainer_memory(records, tell)]
    typer.echo(measured.as_markdown(rate, memories))
    if rate < measured.RATE_BAR or not all(item.passed for item in memories):
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def zoo(trials: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 5) -> None:
    """Compare the whole of `rltrack train` with rl_zoo3's training, wall time from a cold start. Takes five minutes."""
    from rltrack.benchmarks.zoo import as_markdown, compare_with_zoo

    found = compare_with_zoo(trials, tell=lambda text: typer.echo(text, err=True))
    typer.echo(as_markdown(found))
    if not found.passed:
        raise typer.Exit(EXIT_ERROR)


@benchmark.command()
def outage(
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of each training.")] = 60.0,
    trials: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
) -> None:
    """Compare training speed with MLflow's server up and with nobody answering. Takes seven minutes."""
    from rltrack.benchmarks.outage import as_markdown, measure_outage

    typer.echo(as_markdown(measure_outage(seconds, trials, tell=lambda text: typer.echo(text, err=True))))


@benchmark.command("flow")
def orchestration(trials: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 3) -> None:
    """Compare `rltrack flow train` with `rltrack train`, whole commands of a minute, with a server running."""
    from rltrack.benchmarks.orchestration import as_markdown, measure_orchestration

    found = measure_orchestration(trials, tell=lambda text: typer.echo(text, err=True))
    typer.echo(as_markdown(found))
    if not found.passed:
        raise typer.Exit(EXIT_ERROR)


@benchmark.command("resume")
def resume_matrix(
    jobs: Annotated[int, typer.Option(min=1, help="Cases at a time, one core each.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.", show_default=False)] = None,
) -> None:
    """Kill and resume a training of each algorithm and kind of environment, and compare with one that was not.

    All cases take about ten minutes of two cores.
    """
    from rltrack.benchmarks.resume import as_markdown, run_matrix

    rows = run_matrix(only or (), jobs=jobs, tell=lambda text: typer.echo(text, err=True))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(as_markdown(rows))
    typer.echo(as_markdown(rows))
    if not all(row.expected for row in rows):
        raise typer.Exit(EXIT_ERROR)


def _configuration(
    file: Path | None,
    overrides: list[str],
    name: str | None,
    algo: str | None,
    env: str | None,
    timesteps: int | None,
    seed: int | None,
    start_from: str | None = None,
) -> TrainingConfig:
    """A file with options over it, or options alone; or the settings of the run that is begun from."""
    from rltrack.config import TrainingConfig, apply_overrides, read_yaml

    data: dict[str, Any] = {} if file is None else read_yaml(file)
    if start_from is not None:
        data = _settings_of_origin(start_from, data)
    elif file is None and not (algo and env):
        raise ConfigurationError(
            "Nothing to train. Give a configuration file, or --algo and --env: "
            "rltrack train --algo ppo --env CartPole-v1 --timesteps 100000."
        )
    for path, value in (
        ("agent.algorithm", algo),
        ("environment.id", env),
        ("training.total_timesteps", timesteps),
        ("seed", seed),
        ("name", name),
    ):
        if value is not None:
            *sections, last = path.split(".")
            node = data
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = value
    if file is None and start_from is None:
        data.setdefault("training", {}).setdefault("total_timesteps", 100_000)
    return TrainingConfig.from_mapping(apply_overrides(data, overrides), source=str(file or "options"))


def _settings_of_origin(start_from: str, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of the run that is begun from where no file gives others; the version is written out, as it may move."""
    from rltrack.training.trainer import config_of

    origin, _, version = start_from.partition("@")
    run = _root().find(origin)
    data = given or {**config_of(run).to_mapping(), "name": None}
    return {**data, "start_from": f"{origin}@{run.store().find(version or 'last').name}"}


def _train(config: TrainingConfig) -> None:
    from rltrack import console
    from rltrack.training.reporter import ProgressReporter
    from rltrack.training.trainer import Trainer

    _deliver_left_behind(_root())
    trainer = Trainer(config, root=_State.root, reporter=ProgressReporter(console=True))
    try:
        statistics = trainer.train()
    except KeyboardInterrupt:  # once it trains, the loop hears Ctrl-C itself
        _interrupted_before_training()
    run = trainer.run_directory
    assert run is not None, "a training that ended has a run"
    console.wait_for_delivery(trainer.loop.wait_for_tracking, DELIVERY_SECONDS)
    _print_end(run, statistics, trainer.loop.was_finished)


def _interrupted_before_training() -> NoReturn:
    typer.echo("Interrupted before training began; nothing was changed.", err=True)
    raise typer.Exit(EXIT_STOPPED) from None


def _print_end(run: RunDirectory, statistics: TrainingStatistics | None, was_finished: bool) -> None:
    """Say how a training ended; exit code 3 if it was stopped."""
    from rltrack import console
    from rltrack.tracking.bookmark import is_delivered
    from rltrack.training.progress import TrainingState

    assert statistics is not None, "a training that ended has statistics"
    console.print_summary(run, statistics, is_delivered(run))
    if was_finished:
        typer.echo(
            "\nThis run was finished before; nothing was trained. For a new one give another --name or --set seed=…."
        )
    if statistics.state is TrainingState.STOPPED:
        raise typer.Exit(EXIT_STOPPED)


def _root() -> Root:
    from rltrack.runs import Root

    return Root(_State.root)


def _deliver_left_behind(root: Root) -> None:
    """Put right in MLflow and TensorBoard what died before it was delivered; in the background."""
    from rltrack.tracking import delivery

    count = delivery.deliver_left_behind(root)
    if count:
        typer.echo(
            f"{count} run(s) were not delivered whole; trying in the background (rltrack sync --all shows how).",
            err=True,
        )


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _hoist_root(arguments: list[str]) -> list[str]:
    """Allow the global --root anywhere on the line."""
    hoisted: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--root":
            hoisted += [argument, *([value] if (value := next(remaining, None)) is not None else [])]
        elif argument.startswith("--root="):
            hoisted.append(argument)
        else:
            rest.append(argument)
    return hoisted + rest


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    if "torch" in sys.modules:  # taking all its modules apart takes a second, for nothing
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run one command; return its exit code. Errors on purpose are one message, without a traceback."""
    try:
        app(_hoist_root(arguments), prog_name="rltrack")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_ERROR
    except (ConfigurationError, MissingExtra, NameTaken) as error:
        typer.echo(f"Error: {error}", err=True)
        return EXIT_USAGE
    except RltrackError as error:
        typer.echo(f"Error: {error}", err=True)
        return EXIT_ERROR
    return 0
