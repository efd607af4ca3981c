"""The code of every stored model (models from code): MLflow runs this file when it loads one.

It needs the other files of the model, and nothing of rltrack.
"""

from __future__ import annotations

from typing import Any, cast

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
        deterministic = bool((params or {}).get("deterministic", True))
        policy, given = self._policy, cast(Any, model_input)
        if policy.is_masked:
            masks = np.asarray(given["action_masks"], dtype=bool)
            return policy.predict(_observation(given), deterministic=deterministic, action_masks=masks)[0]
        if policy.is_recurrent:
            states = np.moveaxis(np.asarray(given["state"]), 0, 2)  # hidden and cell, layers, batch, units
            actions, (hidden, cell) = policy.predict(
                _observation(given),
                state=(states[0], states[1]),
                episode_start=np.asarray(given["episode_start"], dtype=bool),
                deterministic=deterministic,
            )
            return {"action": actions, "state": np.moveaxis(np.stack([hidden, cell]), 2, 0).astype(np.float32)}
        return policy.predict(given, deterministic=deterministic)[0]


def _observation(given: Any) -> Any:
    parts = {key.removeprefix("observation."): value for key, value in given.items() if key.startswith("observation.")}
    return parts or given["observation"]


set_model(ServedPolicy())
