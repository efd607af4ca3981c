"""Which versions to keep: a pure policy. Deleting is the store's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rltrack.ranking import is_score, rank

if TYPE_CHECKING:
    from rltrack.checkpoints.version import Version


@dataclass(frozen=True, slots=True)
class Retention:
    """Keep the newest resumable versions, the best ones by their evaluation, and one now and then permanently.

    Attributes:
        keep_last: Newest resumable versions to keep, at least 1.
        keep_best: Versions with the highest mean return to keep.
        keep_every: Env steps; the first resumable version of each such stretch is kept permanently. None for none.
        returns_to_best: Whether training may return to the best version. Then the best one before each resumable version is
            kept too: a resume from there needs it.
    """

    keep_last: int = 2
    keep_best: int = 1
    keep_every: int | None = None
    returns_to_best: bool = False

    def superseded(self, versions: Sequence[Version], pinned: Collection[int] = ()) -> list[Version]:
        """Return the versions that may go, oldest first.

        Args:
            versions: All committed ones.
            pinned: Numbers of those that the user wants to keep.
        """
        resumable = [version for version in versions if version.is_resumable]
        newest = resumable[-self.keep_last :] or versions[-1:]  # a recorded script has policies only
        kept = {version.number for version in newest} | set(pinned)
        kept |= {version.number for version in best_first(versions)[: self.keep_best]}
        if self.keep_every is not None:
            stretches: dict[int, int] = {}
            for version in resumable:
                stretches.setdefault(version.env_steps // self.keep_every, version.number)
            stretches.pop(0, None)
            kept |= set(stretches.values())
        if self.returns_to_best:
            for resumable_version in [version for version in resumable if version.number in kept]:
                before = [version for version in versions if version.number <= resumable_version.number]
                kept |= {version.number for version in best_first(before)[:1]}
        return [version for version in versions if version.number not in kept]


def best_first(versions: Sequence[Version]) -> list[Version]:
    """Return the evaluated versions by mean return, the earlier one first where two are equal; none with a NaN."""
    return sorted(
        (version for version in versions if is_score(version.score)),
        key=lambda version: (-rank(version.score), version.number),
    )
