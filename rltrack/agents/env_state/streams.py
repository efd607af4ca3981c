"""Pickle streams of layers: what stays live is referred to, simulators too, and views of one array stay views of one array."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from rltrack.agents.env_state import simulators
from rltrack.agents.gym_types import Space
from rltrack.errors import NotCapturable


class LayerPickler(pickle.Pickler):
    """Writes references to what stays live, and remembers the simulators and arrays it meets.

    Arrays that are views of one array are written as such, so that they share its memory again: only where several arrays do,
    as one view may be a small part of a large array that nothing else needs.

    Args:
        buffer: Where to write.
        layers: They stay live.
        spaces: So do they.
        shared: Ids of the arrays whose views are written as views.
    """

    def __init__(
        self, buffer: io.BytesIO, layers: Sequence[object], spaces: list[Space], shared: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(buffer, protocol=5)
        self._live = {id(value): ("layer", index) for index, value in enumerate(layers)}
        self._live |= {id(value): ("space", index) for index, value in enumerate(spaces)}
        self._shared = shared
        self._arrays: dict[int, list[np.ndarray]] = {}
        self.simulators: list[object] = []

    def shared_arrays(self) -> frozenset[int]:
        """Return the ids of the arrays whose memory several of the arrays in the stream have."""
        return frozenset(owner for owner, arrays in self._arrays.items() if len({id(array) for array in arrays}) > 1)

    def reducer_override(self, value: object) -> Any:
        """Write a view of a shared array as a view; refuse what pickle would build anew instead of keeping it."""
        if "_ezpickle_args" in getattr(value, "__dict__", ()):
            raise NotCapturable("pickle keeps its constructor's arguments only: gymnasium.utils.EzPickle")
        if type(value) is not np.ndarray:
            return NotImplemented
        owner = _owner(value)
        if owner is None:
            return NotImplemented
        self._arrays.setdefault(id(owner), []).append(value)
        if owner is value or id(owner) not in self._shared:
            return NotImplemented
        offset = value.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        return _view, (owner, value.shape, value.dtype, offset, value.strides, value.flags.writeable)

    def persistent_id(self, value: object) -> Any:
        """Refer to what stays live."""
        known = self._live.get(id(value))
        if known is None and simulators.is_simulator(value):
            known = self._live[id(value)] = ("simulator", len(self.simulators))
            self.simulators.append(value)
        return known


def _owner(array: np.ndarray) -> np.ndarray | None:
    """Return the array whose memory this one has; None where it is no plain, contiguous array."""
    owner = array
    while type(owner.base) is np.ndarray:
        owner = owner.base
    plain = owner.base is None and owner.dtype.hasobject is False and array.dtype.hasobject is False
    return owner if plain and owner.size and array.size and owner.flags.forc else None


def _view(
    owner: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, offset: int, strides: tuple[int, ...], writeable: bool
) -> np.ndarray:
    buffer = owner if owner.flags.c_contiguous else owner.T
    view: np.ndarray = np.ndarray(shape, dtype, buffer, offset, strides)
    view.flags.writeable = writeable
    return view


class LayerUnpickler(pickle.Unpickler):
    """Resolves references to what is live now."""

    def __init__(
        self, buffer: io.BytesIO, layers: Sequence[object], spaces: list[Space], simulators: list[object]
    ) -> None:
        super().__init__(buffer)
        self._live: dict[str, Sequence[object]] = {"layer": layers, "space": spaces, "simulator": simulators}

    def persistent_load(self, reference: tuple[str, int]) -> object:
        """Return what is live now."""
        kind, index = reference
        return self._live[kind][index]
