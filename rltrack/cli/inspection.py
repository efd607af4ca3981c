"""Commands that repeat a run: reproduce, watch, diagnose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rltrack.cli.shared import EXIT_ERROR, AsJson, RunAndVersion, RunName, app, print_json, the_root, working
from rltrack.errors import ConfigurationError

_PANEL = "Inspection"


@app.command(rich_help_panel=_PANEL)
def reproduce(
    run: RunName,
    segments: Annotated[str, typer.Option(help="all, last, or how many, spread evenly over the run.")] = "all",
    jobs: Annotated[int, typer.Option(min=1, help="Segments that are trained at the same time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train a run again, and compare every bit.

    Every weight and number, between its versions. Exit code 1 if one differs.

    Versions that are kept decide how many segments there are: checkpoints.keep_every.

    \b
    rltrack reproduce cartpole-ppo --jobs 2
    rltrack reproduce cartpole-ppo --segments last
    """
    import dataclasses

    from rltrack.inspection.reproducing import reproduce as train_again
    from rltrack.runs.folder import CERTIFICATE
    from rltrack.tracking import delivery

    found_run = the_root().find(run)
    found = train_again(found_run, segments=segments, jobs=jobs, notify=lambda text: typer.echo(text, err=True))
    delivery.deliver_left_behind(the_root())  # the result is a tag, the certificate an artifact
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        typer.echo(f"{run} {found.result}\ncertificate   {found_run.path / CERTIFICATE}")
    if not found.reproduced:
        raise typer.Exit(EXIT_ERROR)


@app.command(rich_help_panel=_PANEL)
def watch(
    run: RunAndVersion,
    versions: Annotated[
        str | None,
        typer.Option(metavar="V2,V5,LAST", help="Several versions: one after the other, or in a film side by side."),
    ] = None,
    film: Annotated[
        Path | None, typer.Option(metavar="FILE.mp4", help="Write a film; needs the extra video.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the episode; default: that of the first evaluation.", show_default=False),
    ] = None,
) -> None:
    """Watch a policy play an episode.

    In a window if there is a display, as a film, or as text.

    \b
    rltrack watch cartpole-ppo
    rltrack watch cartpole-ppo --versions v1,best --film watched.mp4
    """
    from rltrack.inspection import watching
    from rltrack.runs import RunRef

    ref = RunRef.parse(run)
    found = the_root().find(ref.run)
    store = found.store()
    wanted = [item.strip() for item in versions.split(",")] if versions else [ref.version or "best"]
    chosen = [store.find(item).name for item in wanted]
    if film is None:
        watching.show(found, chosen, seed, typer.echo)
    else:
        if film.suffix != ".mp4":
            raise ConfigurationError(f"--film is {film}. A film is an .mp4 file.")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
        typer.echo(f"{film}: {watching.film(found, chosen, seed, film)} frames of {', '.join(chosen)}")


@app.command(rich_help_panel=_PANEL)
def diagnose(
    run: RunName,
    at: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="Begin at the newest version at or before; default: the newest.", show_default=False
        ),
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="End here; default: where the records end, and two iterations on.", show_default=False
        ),
    ] = None,
    pdb: Annotated[bool, typer.Option("--pdb", help="Open Python's debugger where the first cause was found.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the first cause of a failed run.

    Repeats its last iterations with checks, and names the first NaN, infinity or error. Exit code 1 if there is one.

    \b
    rltrack diagnose robot-sac
    rltrack diagnose robot-sac --at 40000 --until 45000
    """
    import dataclasses

    from rltrack.console.tables import table_of_sizes, terminal
    from rltrack.inspection.diagnosing import diagnose as find_cause
    from rltrack.inspection.diagnosing import where_to_debug

    with working(f"repeating the last iterations of {run}"):
        found = find_cause(the_root().find(run), at=at, until=until)
    where = f"{found.from_steps:,} to {found.to_steps:,} env steps, from {found.begin or 'the start'}"
    if as_json:
        print_json(
            {**dataclasses.asdict(dataclasses.replace(found, error=None)), "error": found.error and str(found.error)}
        )
    else:
        for note in found.notes:
            typer.echo(f"note: {note}")
        if found.cause is None:
            typer.echo(f"nothing found: {where}")
        else:
            env = "" if found.cause.env_index is None else f", env {found.cause.env_index}"
            typer.echo(
                f"first cause ({found.cause.kind}) at {found.cause.env_steps:,} env steps{env}:\n{found.cause.text}"
            )
            if found.sizes:
                terminal().print(table_of_sizes(found.sizes))
            typer.echo(f"repeated: {where}")
        if found.script is not None:
            typer.echo(f"the episode without rltrack: python {found.script}")
    if pdb and found.error is not None:
        import pdb as debugger

        debugger.post_mortem(where_to_debug(found.error))
    if found.cause is not None:
        raise typer.Exit(EXIT_ERROR)
