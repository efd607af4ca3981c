"""Commands that use that a run repeats bit for bit."""

from __future__ import annotations

from typing import Annotated

import typer

from rltrack.cli.shared import EXIT_ERROR, AsJson, RunName, app, print_json, the_root

_PANEL = "Inspection"


@app.command(rich_help_panel=_PANEL)
def reproduce(
    run: RunName,
    segments: Annotated[str, typer.Option(help="all, last, or how many, spread evenly over the run.")] = "all",
    jobs: Annotated[int, typer.Option(min=1, help="Segments that are trained at the same time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train a run again between its versions, and compare every weight and number bit by bit. Exit code 1 if one differs.

    Versions that are kept decide how many segments there are: checkpoints.keep_every.

    \b
    rltrack reproduce cartpole-ppo --jobs 2
    rltrack reproduce cartpole-ppo --segments last
    """
    import dataclasses

    from rltrack.inspection.reproducing import reproduce as train_again
    from rltrack.tracking import delivery

    found_run = the_root().find(run)
    found = train_again(found_run, segments=segments, jobs=jobs, tell=lambda text: typer.echo(text, err=True))
    delivery.deliver_left_behind(the_root())  # the result is a tag, the certificate an artifact
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        typer.echo(f"{run} {found.result}\ncertificate   {found_run.certificate_file}")
    if not found.reproduced:
        raise typer.Exit(EXIT_ERROR)
