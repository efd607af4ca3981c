"""Commands that steer and watch a training in another process on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from rltrack.cli.shared import RunName, app, the_root, working

_PANEL = "Live runs"
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the next boundary.")]


def _steer(run: str, verb: str, timeout: float) -> None:
    from rltrack.console.steering import steer

    with working(f"waiting for the next boundary of {run}"):
        happened = steer(the_root().find(run), verb, timeout)
    typer.echo(f"{run}: {happened}")


@app.command(rich_help_panel=_PANEL)
def stop(run: RunName, timeout: Timeout = 60.0) -> None:
    """Stop a training with a version to resume from.

    It stops at its next boundary: in a terminal, a container or a flow.

    \b
    rltrack stop cartpole-ppo
    rltrack resume cartpole-ppo
    """
    _steer(run, "stop", timeout)


@app.command(rich_help_panel=_PANEL)
def pause(run: RunName, timeout: Timeout = 60.0) -> None:
    """Pause a training at its next boundary.

    Its process stays in memory. `rltrack continue` continues it.
    """
    _steer(run, "pause", timeout)


@app.command("continue", rich_help_panel=_PANEL)
def continue_(run: RunName, timeout: Timeout = 60.0) -> None:
    """Continue a paused training."""
    _steer(run, "continue", timeout)


@app.command(rich_help_panel=_PANEL)
def checkpoint(run: RunName, timeout: Timeout = 60.0) -> None:
    """Make a training write a version at its next boundary."""
    _steer(run, "checkpoint", timeout)


@app.command(rich_help_panel=_PANEL)
def follow(run: RunName) -> None:
    """Show a training's progress live.

    Evaluations and versions too, until it ends or Ctrl-C. It changes nothing.
    """
    from rltrack.console.steering import follow as show

    show(the_root().find(run))
