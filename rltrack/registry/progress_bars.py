"""MLflow's progress bars, which it shows for every file that is moved: not for what rltrack moves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_VARIABLE = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"  # MLflow has no other way, and reads it for each bar


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Show none meanwhile; a user's own calls to MLflow show them as before."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
