"""What all commands share: the application, arguments, the root."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rltrack import damage
from rltrack.text import is_terminal

if TYPE_CHECKING:
    from rltrack.runs import Root

EXIT_ERROR, EXIT_USAGE, EXIT_STOPPED, EXIT_NOT_PROMOTED = 1, 2, 3, 4


class _Commands(TyperGroup):
    """All commands. The error for a missing argument has the argument's help: what it is, and which command lists the choices."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message or getattr(error.param, "help", None) or ""
            raise


app = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train reinforcement-learning agents, with exact resume, tracking and a promotion gate.",
)
_FIRST_STEPS = """\
Train reinforcement-learning agents, with exact resume, tracking and a promotion gate.

Begin with:
  rltrack train --algo ppo --env CartPole-v1 --timesteps 20000 --name first
  rltrack runs             list the runs, with their status
  rltrack show first       one run: evaluations, versions, warnings
  rltrack resume first     go on after Ctrl-C or a crash
  rltrack compare A B      two runs: scores, curves, what differs
  rltrack init --algo ppo --env CartPole-v1    a configuration with every key explained
  rltrack doctor           check the installation

All commands: rltrack --help. One of them: rltrack COMMAND --help."""
benchmark = typer.Typer(no_args_is_help=True, help="Measure what the documentation's tables show.")
flow = typer.Typer(no_args_is_help=True, help="Train as a Prefect flow, with retries and a page.")
app.add_typer(flow, name="flow", rich_help_panel="Servers")
app.add_typer(benchmark, name="benchmark", rich_help_panel="Benchmarks")


def _complete_run(incomplete: str) -> list[str]:
    """Names of runs for the shell's completion; after an @ the versions of that run."""
    from rltrack.runs import Root

    root = Root(state.root)
    name, at, _ = incomplete.partition("@")
    if not at:
        return [name for name in root.names() if name.startswith(incomplete)]
    versions = root.find(name).store().versions() if name in root.names() else []
    known = [f"{name}@{version}" for version in ("best", "last", *(version.name for version in versions))]
    return [choice for choice in known if choice.startswith(incomplete)]


RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name; `rltrack runs` lists them.", autocompletion=_complete_run)
]
RunAndVersion = Annotated[
    str,
    typer.Argument(
        metavar="RUN[@VERSION]",
        help="A run's name (`rltrack runs` lists them), and best (default), last, v12 or env steps.",
        autocompletion=_complete_run,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def finite(value: float | None) -> float | None:
    """Refuse a number with which every comparison is false, or the same for all."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


class _State:
    """What was said before the command."""

    root: Path | None = None


state = _State()


def _print_version(wanted: bool) -> None:
    if wanted:
        from rltrack import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    root: Annotated[
        Path | None, typer.Option(help="Folder of all runs; default: $RLTRACK_ROOT or ./mlruns.", show_default=False)
    ] = None,
    version: Annotated[  # acted upon when it is read
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    state.root = root
    if context.invoked_subcommand is None:
        typer.echo(_FIRST_STEPS)


def the_root() -> Root:
    """Return the root that was asked for."""
    from rltrack.runs import Root

    return Root(state.root)


def deliver_left_behind(home: Root) -> None:
    """Put right in MLflow and TensorBoard what died before it was delivered; in the background."""
    from rltrack.tracking import delivery

    with damage.collected():  # of other runs; `rltrack runs` and `rltrack sync --all` say it
        count = delivery.deliver_left_behind(home)
    if count:
        typer.echo(
            f"{count} run(s) were not delivered completely; trying in the background (rltrack sync --all shows how).",
            err=True,
        )


@contextlib.contextmanager
def working(on: str, *, aloud: bool = False) -> Iterator[None]:
    """Show what takes a while, on a terminal; elsewhere nothing, or with `aloud` a line."""
    if not is_terminal(sys.stderr):
        if aloud:
            typer.echo(f"{on} …", err=True)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{on} …"):
        yield


def print_json(value: Any) -> None:
    """Print for programs."""
    typer.echo(json.dumps(value, indent=2, default=str))
