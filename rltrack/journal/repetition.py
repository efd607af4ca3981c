"""The stretch that a resumed training repeats: which of its records the journal has."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from rltrack.journal.lines import Record


class Repetition:
    """Recognises the records that an exact resume produces again, by kind and env steps.

    Their number is no sign of that: with another ``tracking.log_interval`` the same stretch has more or fewer metrics. A record
    that the journal lacks is new. Metrics up to the env steps of the last metrics in the journal are not: the stretch was logged
    there already, at the interval of then.

    Args:
        written: The numbered records that the journal has since the version from which training resumes.
    """

    def __init__(self, written: Iterable[Record]) -> None:
        self._waiting: dict[int, None] = {}
        self._numbers: dict[tuple[str, int], deque[int]] = defaultdict(deque)
        self._last_step = self._last_metrics = -1
        for record in written:
            seq, kind, step = record["seq"], record["kind"], record["step"]
            self._waiting[seq] = None
            self._numbers[kind, step].append(seq)
            self._last_step = max(self._last_step, step)
            if kind == "metrics":
                self._last_metrics = max(self._last_metrics, step)

    @property
    def next_seq(self) -> int | None:
        """Number of the first record that was not produced again yet; None once the stretch is over."""
        return next(iter(self._waiting), None)

    def has(self, kind: str, step: int) -> bool:
        """Whether the journal has what training produces now."""
        if not self._waiting:
            return False
        if step > self._last_step:
            self._waiting.clear()  # the rest was not produced again: settings differ, or the attempt before was asked to stop
            return False
        numbers = self._numbers.get((kind, step))
        if numbers:
            del self._waiting[numbers.popleft()]
            return True
        return kind == "metrics" and step <= self._last_metrics
