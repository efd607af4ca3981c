"""MLflow's request format as a policy's input, and its answer: pure functions of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from rltrack.agents.policy_inputs import BadInput, act, read_inputs

FORMATS = ("inputs", "instances", "dataframe_split")
_PARAMETERS = {"deterministic": True, "clip": False}


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        given: Observations, and what a policy with masks or a state takes in addition.
        deterministic: Act by the policy's mode.
        clip: Clip observations to the bounds of their space.
    """

    given: Any
    deterministic: bool
    clip: bool


def read_request(body: bytes) -> Request:
    """Read a body.

    Raises:
        BadInput: If it is no JSON object of one of MLflow's formats, or has a parameter that is unknown.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = " ".join(str(error).split())[:120]
        raise BadInput(f"The body is no JSON: {text}. NaN and infinity are refused.") from None
    if not isinstance(data, dict):
        raise BadInput(f"The body is no JSON object. Expected: one of {', '.join(FORMATS)}, and optionally params.")
    unknown = [key[:60] for key in data if key not in (*FORMATS, "params")]
    found = [key for key in FORMATS if key in data]
    if unknown or len(found) != 1:
        keys = ", ".join([*found, *unknown][:20]) or "none"
        raise BadInput(f"The body has the keys: {keys}. Expected: one of {', '.join(FORMATS)}, and optionally params.")
    params = {**_PARAMETERS, **_parameters(data.get("params"))}
    return Request(_given(found[0], data[found[0]]), **params)


def answer(policy: Any, request: Request, version: int, max_batch: int) -> bytes:
    """Return the answer's body: ``predictions``, as MLflow's server gives them, and the ``version`` that acted.

    A single observation gets a single action, a batch of them a list.

    Raises:
        BadInput: If the policy does not accept the input, or it has more than `max_batch` observations.
    """
    given = request.given
    if isinstance(given, Frame) and not (policy.is_masked or policy.is_recurrent or policy.has_keys):
        given = given.unnamed(policy.observation_space.shape)
    inputs = read_inputs(policy, given, clip=request.clip)
    if inputs.count > max_batch:
        raise BadInput(
            f"{inputs.count} observations in one request; at most {max_batch} are allowed. Send several requests."
        )
    found = act(policy, inputs, deterministic=request.deterministic)
    if isinstance(found, Mapping):
        plain: Any = {key: _plain(value, inputs.is_single) for key, value in found.items()}
    else:
        plain = _plain(found, inputs.is_single)
    return orjson.dumps({"predictions": plain, "version": version})


def _plain(values: Any, is_single: bool) -> Any:
    array = np.asarray(values)
    return (array[0] if is_single else array).tolist()


def _parameters(params: Any) -> dict[str, bool]:
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise BadInput(f"params is no object. Allowed in it: {', '.join(_PARAMETERS)}.")
    unknown = [key[:60] for key in params if key not in _PARAMETERS]
    if unknown:
        raise BadInput(f"Unknown parameters: {', '.join(unknown[:20])}. Allowed: {', '.join(_PARAMETERS)}.")
    for key, value in params.items():
        if not isinstance(value, bool):
            raise BadInput(f"The parameter {key} is neither true nor false.")
    return params


def _given(form: str, value: Any) -> Any:
    if form == "instances" and isinstance(value, list) and value and isinstance(value[0], dict):
        return _by_key(value)
    return _columns(value) if form == "dataframe_split" else value


def _by_key(rows: list[Any]) -> dict[str, list[Any]]:
    """A list of objects as an object of lists; a nested observation likewise."""
    keys = rows[0].keys()
    if not all(isinstance(row, dict) and row.keys() == keys for row in rows):
        raise BadInput("The instances do not all have the same keys.")
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in keys}
    nested = columns.get("observation")
    if nested and isinstance(nested[0], dict):
        columns["observation"] = _by_key(nested)
    return columns


def _columns(frame: Any) -> Any:
    """Pandas' split form: a column for each key of the observation, or for each component of an unnamed one."""
    is_frame = isinstance(frame, dict) and frame.keys() <= {"columns", "data", "index"}
    columns, rows = (frame.get("columns"), frame.get("data")) if is_frame else (None, None)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise BadInput("dataframe_split has no rows. Expected: an object with columns and data, a list of lists.")
    if columns is not None and not isinstance(columns, list):
        raise BadInput("dataframe_split's columns are no list.")
    if columns and any(len(row) != len(columns) for row in rows):
        raise BadInput(f"dataframe_split has {len(columns)} columns, and a row of another length.")
    if columns and all(isinstance(name, str) for name in columns) and len(set(columns)) == len(columns):
        return Frame({name: [row[index] for row in rows] for index, name in enumerate(columns)}, rows)
    return rows


class Frame(dict[str, list[Any]]):
    """Columns by name, and the same as rows, for observations that have no keys."""

    def __init__(self, columns: Mapping[str, list[Any]], rows: list[list[Any]]) -> None:
        super().__init__(columns)
        self._rows = rows

    def unnamed(self, shape: tuple[int, ...]) -> list[Any]:
        """Rows of numbers; where there is one column, its cells, unless rows of one number are what is expected."""
        return [row[0] for row in self._rows] if len(self) == 1 and shape != (1,) else self._rows
