"""Ring buffers as they appear in a state: a store keeps each row once, however often a checkpoint is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ring:
    """The rows of a ring buffer, live: take them with `rows` before training continues.

    Row r (counted from the first that was ever written) is at ``r % capacity``. Rows must not change once written.

    Attributes:
        arrays: By name; the first axis is the position in the ring, the same length for each.
        written: Rows ever written.
    """

    arrays: Mapping[str, np.ndarray]
    written: int

    @property
    def capacity(self) -> int:
        """Rows that the ring holds at most."""
        return len(next(iter(self.arrays.values())))

    @property
    def first(self) -> int:
        """The oldest row that is still there."""
        return max(0, self.written - self.capacity)

    def rows(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Return copies of the rows ``first <= r < last``, in order."""
        return {
            name: np.concatenate([array[part] for part in _slices(first, last, len(array))])
            for name, array in self.arrays.items()
        }

    def chunks(self) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """Yield ``(first row, arrays)``, oldest first, until all rows were seen."""
        yield self.first, self.rows(self.first, self.written)


def fill(arrays: Mapping[str, np.ndarray], chunks: Iterator[tuple[int, Mapping[str, np.ndarray]]]) -> None:
    """Write rows to where they belong in a ring buffer's arrays."""
    for first, rows in chunks:
        for name, values in rows.items():
            target = arrays[name]
            done = 0
            for part in _slices(first, first + len(values), len(target)):
                length = part.stop - part.start
                target[part] = values[done : done + length]
                done += length


def _slices(first: int, last: int, capacity: int) -> list[slice]:
    """Where the rows ``first <= r < last`` lie, as one or two slices."""
    if last - first > capacity:
        raise ValueError(f"{last - first} rows do not fit into a ring of {capacity}")
    start, length = first % capacity, last - first
    until_end = min(length, capacity - start)
    return [slice(start, start + until_end), slice(0, length - until_end)]
