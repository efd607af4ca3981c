"""The command line. Each command is a thin layer over the library; only these modules print.

Exit codes: 0 done, 1 error, 2 usage, 3 stopped by the user or a signal with a checkpoint (can be resumed), 4 not promoted.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import traceback

import typer

# they add their commands, and the help lists them in this order
# isort: off
from rltrack.cli import training, sweeps, live, runs, inspection, models, exchange, servers, benchmarks  # noqa: F401

# isort: on
from rltrack import damage
from rltrack.cli.shared import EXIT_ERROR, EXIT_USAGE, app
from rltrack.errors import ConfigurationError, MissingExtra, NameTaken, RltrackError
from rltrack.text import print_in_any_encoding, printable

_INTERRUPTED = 130  # the exit code that typer gives Ctrl-C


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
    print_in_any_encoding()
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    if "torch" in sys.modules:  # taking all its modules apart takes a second, for nothing
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run one command; return its exit code. rltrack's own errors are one message without a traceback.

    What readers found damaged and left out is reported at the end, and makes the exit code 1 where it would be 0.
    """
    with damage.collected() as found:
        code = _run(arguments)
    for text in (*found.new, *found.known):
        typer.echo(f"{'Damaged' if text in found.new else 'Known'}: {printable(text)}", err=True)
    return EXIT_ERROR if found.new and code == 0 else code


def _run(arguments: list[str]) -> int:
    try:
        app(_hoist_root(arguments), prog_name="rltrack")
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            typer.echo("Interrupted.", err=True)
        return end.code if isinstance(end.code, int) else EXIT_ERROR
    except (ConfigurationError, MissingExtra, NameTaken) as error:
        typer.echo(f"Error: {printable(str(error))}", err=True)
        return EXIT_USAGE
    except RltrackError as error:
        typer.echo(f"Error: {printable(str(error))}", err=True)
        return EXIT_ERROR
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            typer.echo(printable(f"Error: {_about_file(error)}"), err=True)
        else:  # where it happened helps the person who fixes it; its text may come from anywhere
            typer.echo(printable(traceback.format_exc()), err=True)
        return EXIT_ERROR
    return 0


def _about_file(error: OSError) -> str:
    """What the system refuses, with a remedy."""
    said = f"{error.filename}: {error.strerror or error}."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{said} This needs to read and write there. Give yourself the right, or write elsewhere: --output for plots, exports "
            "and comparisons, --root for a copy of the root that can be written."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{said} Free some space, and try again."
    return f"{said} Put the file or folder back from a backup, or move what stands in its place away, and try again."
