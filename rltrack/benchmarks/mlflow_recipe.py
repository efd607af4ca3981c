"""SB3's documented way to MLflow, for the benchmark only: one call for each value, from the training process.

Source: Stable-Baselines3's documentation, guide "Integrations", section "MLflow".
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np


class MlflowRecipe:
    """A logger's output that calls ``mlflow.log_metric`` for each value."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        """Log each number that is not excluded."""
        for key, value in key_values.items():
            if "mlflow" in (key_excluded.get(key) or ()):
                continue
            if isinstance(value, np.ScalarType) and not isinstance(value, str):
                mlflow.log_metric(key, value, step)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the MLflow run."""
        mlflow.end_run()


def start_recipe(tracking_uri: str) -> Any:
    """Start an MLflow run; return the output for SB3's logger."""
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.start_run()
    return MlflowRecipe()
