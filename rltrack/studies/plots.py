"""Plots of a search, drawn by Optuna."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltrack.studies.search import Search

_logger = logging.getLogger("rltrack")


def draw_search(search: Search) -> list[Path]:
    """Draw history, curves, importances, slices and parallel coordinates of a sweep into its folder.

    Returns:
        The pictures that could be drawn; importances, for one, need several complete trials.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawing = search.optuna.visualization.matplotlib
    pictures = []
    for name, draw in (
        ("history", drawing.plot_optimization_history),
        ("curves", drawing.plot_intermediate_values),
        ("importances", drawing.plot_param_importances),
        ("slices", drawing.plot_slice),
        ("parallel", drawing.plot_parallel_coordinate),
    ):
        path = search.folder / f"{name}.png"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                axes = draw(search.study)
                figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
                figure.set_size_inches(12 if name in ("slices", "parallel") else 8, 5)
                figure.savefig(path, dpi=110, bbox_inches="tight")
            pictures.append(path)
        except (
            Exception
        ) as error:  # what a picture lacks differs: complete trials, several parameters, numbers in range
            _logger.debug(f"{name} of sweep {search.name} could not be drawn: {error}")
        finally:
            plt.close("all")
    return pictures
