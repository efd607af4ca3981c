"""A line in a notebook's output that changes in place."""

from __future__ import annotations

import sys
from collections.abc import Callable


def line_in_place() -> Callable[[str], None] | None:
    """Return a function that shows a text in this cell's output, in place of the one before; None outside of notebooks."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    if type(get_ipython()).__name__ != "ZMQInteractiveShell":  # a kernel; the shell in a terminal has a name of its own
        return None
    handle = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
    return lambda text: handle.update({"text/plain": text}, raw=True)
