"""The command line. Each command is a thin door to the library; only here is anything printed.

Exit codes: 0 done, 1 error, 2 usage, 3 stopped by a person or a signal with a checkpoint (can be resumed), 4 not promoted.
"""

from __future__ import annotations

import atexit
import os
import sys

import typer

# they add their commands, and the help lists them in this order
# isort: off
from rltrack.cli import training, sweeps, runs, models, servers, benchmarks  # noqa: F401

# isort: on
from rltrack.cli.shared import EXIT_ERROR, EXIT_USAGE, app
from rltrack.errors import ConfigurationError, MissingExtra, NameTaken, RltrackError


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
