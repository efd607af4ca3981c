"""The code of every stored model (models from code): MLflow runs this file when it loads one.

It needs the other files of the model, and nothing of rltrack.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class ServedPolicy(PythonModel):
    """Acts on batches of raw observations.

    A policy with action masks takes ``observation`` and ``action_masks``; a recurrent one ``observation``, ``episode_start``
    and ``state``, and returns ``action`` and the ``state`` of the next call, so that the caller carries it.
    """

    def load_context(self, context: Any) -> None:
        """Read the policy's files."""
        from exported_policy import ExportedPolicy  # type: ignore[import-not-found]  # next to this file in the model

        self._policy = ExportedPolicy.load(context.artifacts["policy"])

    # MLflow reads the annotation of `model_input` as a schema; an array stands for "as the signature says", a dictionary too
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """Return actions, first axis as of the observations."""
        from policy_inputs import act, read_inputs  # type: ignore[import-not-found]

        chosen = params or {}
        inputs = read_inputs(self._policy, model_input, clip=bool(chosen.get("clip", False)))
        return act(self._policy, inputs, deterministic=bool(chosen.get("deterministic", True)))


set_model(ServedPolicy())
