"""Commands that train several runs: seeds and sweeps."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rltrack.cli.options import ConfigFile, Overrides, TrainingOptions, takes_training
from rltrack.cli.shared import (
    EXIT_ERROR,
    EXIT_STOPPED,
    AsJson,
    app,
    deliver_left_behind,
    print_json,
    the_root,
    working,
)
from rltrack.errors import ConfigurationError

if TYPE_CHECKING:
    from rltrack.studies.search import Search
    from rltrack.studies.sweep import Unfinished

T = TypeVar("T")

Deployed = Annotated[
    bool,
    typer.Option(
        "--deployed",
        help="As deployment runs, on all workers of the Prefect server that PREFECT_API_URL names, or of the stack here.",
    ),
]
Wait = Annotated[bool, typer.Option(help="With --deployed: follow them to their end.")]

Jobs = Annotated[
    int, typer.Option(min=1, help="Number of trainings at the same time on this machine, in separate processes.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Database of the trials, for several machines: postgresql://user@host/database; default: $RLTRACK_SWEEP_STORAGE, "
        "or a file under the root.",
        show_default=False,
    ),
]


@app.command(rich_help_panel="Training")
@takes_training(without=("name", "seed", "start_from"))
def study(
    asked: TrainingOptions,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1, 2, …")] = 5,
    jobs: Jobs = 1,
    deployed: Deployed = False,
    wait: Wait = True,
    name: Annotated[
        str | None, typer.Option(help="The study's name; an existing one is resumed.", show_default=False)
    ] = None,
) -> None:
    """Train with several seeds, and summarise the results.

    Interrupted at any point, the same command resumes it.

    \b
    rltrack study configs/cartpole_ppo.yaml --seeds 5 --jobs 2
    rltrack study --algo ppo --env CartPole-v1 --timesteps 50000 --seeds 3
    """
    from rltrack.comparison.study import study_of
    from rltrack.console.studies import print_comparison
    from rltrack.studies.seeds import train_seeds

    resolved = replace(asked, name=name).resolve()
    if deployed:
        from rltrack.studies.seeds import study_members

        _, members = study_members(resolved, range(seeds), the_root())
        well = _spread(lambda spread: spread.spread_seeds(the_root(), members, wait=wait, notify=_say))
        typer.echo(f"\nruns          {' '.join(members)}")
        if not well:
            raise typer.Exit(EXIT_ERROR)
        return
    deliver_left_behind(the_root())
    found = _until_stopped(lambda: train_seeds(resolved, range(seeds), the_root(), jobs=jobs, notify=_say))
    evaluated = [run for run in found.finished if run.status().mean_return is not None]
    if evaluated:
        print_comparison(study_of(evaluated))
    for member, why in found.unfinished:
        _say(f"{member}: {why}")
    names = " ".join(run.name for run in found.finished)
    if names:
        typer.echo(f"\nruns          {names}\ncompare       rltrack compare {names} OTHER-RUNS…")
    if found.unfinished:
        raise typer.Exit(EXIT_ERROR)


@app.command(rich_help_panel="Training")
def sweep(
    config: ConfigFile = None,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="The sweep's name; an existing one is resumed.", show_default=False)
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials.", show_default=False)] = None,
    jobs: Jobs = 1,
    deployed: Deployed = False,
    wait: Wait = True,
    storage: Storage = None,
    show: Annotated[bool, typer.Option("--show", help="Only print the results so far.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search for the best configuration.

    Interrupted at any point, the same command, or --name alone, resumes it.

    \b
    rltrack sweep configs/cartpole_sweep.yaml --jobs 2
    rltrack sweep --name cartpole-sweep --trials 40
    rltrack sweep --name cartpole-sweep --show
    """
    from rltrack.studies.search import trial_name

    if show and trials is not None:
        raise ConfigurationError("--show only prints; --trials, which changes the sweep, is for a command without it.")
    search = _search(config, overrides or [], name, trials, storage, show)
    left: list[Unfinished] = []
    well = True
    if deployed and not show:
        well = _spread(lambda spread: spread.spread_trials(search, wait=wait, notify=_say))
    elif not show:
        from rltrack.studies.sweep import sweep_here

        deliver_left_behind(the_root())
        left = _until_stopped(lambda: sweep_here(search, jobs=jobs, console=jobs == 1, notify=_say))
    _print_sweep(search, as_json)
    for item in left:
        _say(f"{trial_name(search.name, item.number)}: {item.why}")
    if left:
        raise typer.Exit(EXIT_STOPPED if all(item.stopped for item in left) else EXIT_ERROR)
    if not well:
        raise typer.Exit(EXIT_ERROR)


@app.command("carry-out-trial", hidden=True)
def trial(sweep: str, number: int) -> None:
    """Carry out one trial of a sweep in this process."""
    from rltrack.studies.search import Search
    from rltrack.studies.trials import run_trial, train_here

    search = Search(sweep, the_root()).open()
    result = _until_stopped(lambda: run_trial(search, number, train_here(search, console=False)))
    typer.echo(f"{result.state}: {result.reason}")
    if result.state == "stopped":
        raise typer.Exit(EXIT_STOPPED)


def _search(
    config: Any, overrides: list[str], name: str | None, trials: int | None, storage: str | None, show: bool
) -> Search:
    """Open a sweep by its file or by its name; nothing is made before the whole file is found to be right, or to show it."""
    from rltrack.studies.search import Search
    from rltrack.studies.space import check_space, read_sweep

    if config is None:
        if name is None or overrides:
            raise ConfigurationError(
                "Nothing to search. Give a configuration file with a section 'sweep', or --name of a sweep that was begun."
            )
        search = Search(name, the_root(), storage).open(read_only=show)
        if trials is not None and trials != search.section.number_of_trials:
            search.open(search.base, search.section.model_copy(update={"trials": trials}))
        return search
    base, section = read_sweep(config, [*overrides, *([] if trials is None else [f"sweep.trials={trials}"])])
    check_space(base, section)
    chosen = name or base.get("name") or config.stem.replace("_", "-")
    if show:
        return Search(str(chosen), the_root(), storage).open(read_only=True)
    the_root().check_writable()
    return Search(str(chosen), the_root(), storage).open({**base, "name": None}, section)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _spread(start: Callable[[Any], dict[str, str]]) -> bool:
    """Start deployment runs, and follow them; return whether all went well. Ctrl-C leaves them to the workers."""
    from rltrack.flows import client, spread

    try:
        with client.existing_server(the_root().path):
            problems = start(spread)
    except KeyboardInterrupt:
        _say("They continue without this command; the same command follows them again.")
        raise typer.Exit(EXIT_STOPPED) from None
    for name, why in problems.items():
        _say(f"{name}: {why}")
    return not problems


def _until_stopped(work: Callable[[], T]) -> T:
    from rltrack.training.control import heard_signals

    # as Ctrl-C: the trainings stop at a boundary
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard_signals()}
    try:
        return work()
    except KeyboardInterrupt:
        _say("Stopped; the same command resumes it.")
        raise typer.Exit(EXIT_STOPPED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _print_sweep(search: Search, as_json: bool) -> None:
    from rltrack.console.studies import print_trials
    from rltrack.studies.plots import draw_search
    from rltrack.studies.sweep import trial_rows, write_best

    with working("drawing the trials"):
        rows = trial_rows(search)
        best = write_best(search)
        pictures = [] if best is None else draw_search(search)
    if as_json:
        print_json({"name": search.name, "trials": rows, "best": best})
        return
    print_trials(rows, search.section.seeds)
    if best is not None:
        typer.echo(f"\nbest          rltrack train {search.folder / 'best.yaml'}")
        if pictures:
            typer.echo(f"plots         {search.folder}/*.png")
