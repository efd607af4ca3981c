"""The seed of Python's hashes of strings and bytes, on which the order of a set depends: ``PYTHONHASHSEED``.

Python draws a new one for each process unless the variable fixes it before the interpreter starts. An environment that iterates
over a set of strings then does something else after a resume. Commands that train therefore fix it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "PYTHONHASHSEED"
RANDOM = "random"
NOTICE = (
    "The hash seed of this process is random: if the environment iterates over a set of strings, a resume is not exact. "
    f"Start Python with {VARIABLE}=0 to fix it; `rltrack train` does."
)
_TRAINING = frozenset(
    ("train", "resume", "verify-resume", "study", "sweep", "carry-out-trial", "flow", "up", "reproduce", "diagnose", "benchmark",
     "import")
)  # fmt: skip
"""Commands that train, or start processes that do."""
_AT_START = Path("/proc/self/environ")


def hash_seed() -> str:
    """Return the seed with which this interpreter was started, or ``random``."""
    if not sys.flags.hash_randomization:
        return "0"
    given = _environment_at_start().get(VARIABLE, "")
    return given if given.isdecimal() and not sys.flags.ignore_environment else RANDOM


def with_hash_seed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that trains: with a fixed seed, unless it says otherwise."""
    return {**environment, VARIABLE: environment.get(VARIABLE) or "0"}


def fix_hash_seed(arguments: Sequence[str]) -> None:
    """Start this process again with a fixed seed if its command trains and nothing was said of the seed.

    Call it before anything heavy is imported: it costs a start of the interpreter.

    Args:
        arguments: Of the command line, without the program.
    """
    if os.environ.get(VARIABLE) or not _TRAINING.intersection(arguments) or {"-h", "--help"}.intersection(arguments):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], with_hash_seed(os.environ))


def _environment_at_start() -> Mapping[str, str]:
    """The variables at the start of the process: a program may have set some since, which changes no hash any more."""
    try:
        lines = _AT_START.read_bytes().decode(errors="replace").split("\0")
    except OSError:  # not Linux
        return os.environ
    return dict(line.partition("=")[::2] for line in lines if line)
