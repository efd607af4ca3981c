"""Whether a run's record follows from its configuration: it is trained again between its versions, and every bit compared."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rltrack.checkpoints import Version
from rltrack.checkpoints.version import MANIFEST
from rltrack.errors import ConfigurationError, RltrackError
from rltrack.files import replace_text
from rltrack.identity import identity, identity_hash
from rltrack.inspection.scratch import versions_to_repeat_from
from rltrack.inspection.stretch import Outcome, Stretch, repeat_in_process
from rltrack.journal import Journal
from rltrack.plain_data import differences
from rltrack.provenance import context_now, package_versions
from rltrack.runs import RunDirectory
from rltrack.runs.folder import CERTIFICATE
from rltrack.runs.writer import RunWriter
from rltrack.training.trainer import config_of

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came out.

    Attributes:
        reproduced: Whether everything that was trained again has the same bits.
        result: In words: how much of the run, or the first difference.
        notes: What differs between then and now: versions of packages, CPU, attempts that were not exact.
        outcomes: Of each stretch, in the order of training.
    """

    reproduced: bool
    result: str
    notes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


def stretches(versions: Sequence[Version], wanted: str) -> list[Stretch]:
    """Return what is trained again: from the start to the first version, and from each version to the next.

    Args:
        versions: Resumable ones, oldest first.
        wanted: ``all``, ``last``, or how many, spread evenly over the run, the last one among them.

    Raises:
        ConfigurationError: If it is none of these.
    """
    names = [None, *(version.name for version in versions)]
    found = [Stretch(begin, end) for begin, end in itertools.pairwise(names) if end is not None]
    if wanted == "all":
        return found
    count = 1 if wanted == "last" else int(wanted) if wanted.isdecimal() and len(wanted) < 9 else 0
    if count < 1:
        raise ConfigurationError(f"--segments is {wanted!r}. Allowed: all, last, or a number from 1.")
    count = min(count, len(found))
    places = {len(found) - 1 - round(index * len(found) / count) for index in range(count)}
    return [found[place] for place in sorted(places)]


def reproduce(
    run: RunDirectory,
    *,
    segments: str = "all",
    jobs: int = 1,
    notify: Callable[[str], None] = lambda text: None,
    repeat: Callable[[RunDirectory, Stretch], Outcome] = repeat_in_process,
) -> Reproduction:
    """Train a run again and compare; write the certificate into its folder, and the result into its journal.

    Args:
        run: The run; no process may train it.
        segments: As `stretches`.
        jobs: How many are trained at a time.
        notify: Called with each progress message.
        repeat: Trains one stretch.

    Raises:
        ConfigurationError: If its agent was built by a script, or an argument is wrong.
        RltrackError: If it has no version to compare with, or a training fails.
        RunBusy: If a process trains it.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}; at least one training must run at a time.")
    config = config_of(run)
    versions = versions_to_repeat_from(run)
    if not versions:
        raise RltrackError(
            f"Run {run.name} has no version to compare with: its checkpoints hold no state to resume from."
        )
    wanted = stretches(versions, segments)
    with run.lock():
        notes = list(_notes(run, versions))
        for note in notes:
            notify(f"note: {note}")
        changed = _changed_configuration(run, identity(config))
        outcomes: list[Outcome] = []
        if changed is None:
            with ThreadPoolExecutor(jobs) as pool:
                for outcome in pool.map(lambda stretch: repeat(run, stretch), wanted):
                    notify(_line(outcome))
                    outcomes.append(outcome)
        notes += dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
        wrong = changed or next((_where(item) for item in outcomes if item.difference is not None), None)
        result = _share(outcomes, versions[-1].env_steps) if wrong is None else f"differs: {wrong}"
        found = Reproduction(wrong is None, result, tuple(notes), tuple(outcomes))
        certificate = _certificate(run, found, versions, identity_hash(identity(config)))
        replace_text(run.path / CERTIFICATE, json.dumps(certificate, indent=2) + "\n")
        journal = Journal(run.journal_file)
        try:
            RunWriter(journal).reproduction(found.reproduced, found.result)
        finally:
            journal.close()
    return found


def manifest_digest(version: Version) -> str:
    """Return the SHA-256 of a version's manifest, which holds those of its files."""
    return hashlib.sha256((version.path / MANIFEST).read_bytes()).hexdigest()


def require_reproduced(run: RunDirectory, version: Version) -> None:
    """Refuse a version of a run that no certificate covers.

    Raises:
        RltrackError: With the reason and the command that makes a certificate.
    """
    again = f"Make one: rltrack reproduce {run.name}."
    try:
        certificate: Any = json.loads((run.path / CERTIFICATE).read_bytes())
        reproduced, result, known = certificate["reproduced"], certificate["result"], certificate["digests"]["versions"]
    except FileNotFoundError:
        raise RltrackError(f"Run {run.name} has no certificate of a reproduction. {again}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RltrackError(f"{run.path / CERTIFICATE} cannot be read ({error}). {again}") from None
    if reproduced is not True:
        raise RltrackError(f"Run {run.name} was not reproduced: {result}. Find out why before you promote it.")
    if certificate.get("covers") is not True:
        raise RltrackError(f"Only a part of run {run.name} was reproduced: {result}. {again}")
    if known.get(version.name) != manifest_digest(version):
        raise RltrackError(f"{run.name}@{version.name} is not the version that was reproduced. {again}")


def _changed_configuration(run: RunDirectory, ours: Mapping[str, Any]) -> str | None:
    record = run.configuration_record()
    changed = differences(record["identity"], json.loads(json.dumps(ours, default=str))) if record else []
    return f"its configuration (in the journal → in {run.config_file.name}): {changed[0]}" if changed else None


def _notes(run: RunDirectory, versions: Sequence[Version]) -> Iterator[str]:
    before, now = versions[-1].details.get("versions", {}), package_versions()
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name, 'absent')}, now {now.get(name, 'absent')}"
    history = run.history()
    for attempt in history.attempts:
        if not attempt["exact"]:
            yield f"attempt {attempt['number']} was not exact, from {attempt['env_steps']:,} env steps on"
    yield from (f"the journal lacks {item}" for item in history.missing)


def _where(outcome: Outcome) -> str:
    also = f"; and {outcome.tensor}" if outcome.tensor not in (None, outcome.difference) else ""
    why = f". The record need not be wrong: {'; '.join(outcome.notes)}" if outcome.notes else ""
    return f"between {outcome.begin or 'the start'} and {outcome.end}, {outcome.difference}{also}{why}"


def _line(outcome: Outcome) -> str:
    where = f"{outcome.from_steps:,} to {outcome.to_steps:,} env steps ({outcome.begin or 'start'} → {outcome.end})"
    what = f"{outcome.records:,} records, {outcome.values:,} values, {outcome.seconds:.0f} s"
    rest = "" if outcome.unchecked is None else f"; {outcome.unchecked}"
    return f"{where}: {'the same bits' if outcome.difference is None else outcome.difference} ({what}){rest}"


def _covered(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.to_steps - outcome.from_steps for outcome in outcomes)


def _share(outcomes: Sequence[Outcome], total: int) -> str:
    covered = _covered(outcomes)
    part = "all" if covered == total else f"{covered:,} ({100 * covered / total:.0f} %)"
    values = sum(outcome.values for outcome in outcomes)
    rest = "".join(f"; {outcome.unchecked}" for outcome in outcomes if outcome.unchecked is not None)
    return (
        f"reproduced: {part} of {total:,} env steps in {len(outcomes)} segment(s), {values:,} values bit for bit{rest}"
    )


def _certificate(run: RunDirectory, found: Reproduction, versions: Sequence[Version], config: str) -> dict[str, Any]:
    last = versions[-1]
    with open(run.journal_file, "rb") as file:
        journal = hashlib.sha256(file.read(last.journal["bytes"])).hexdigest()
    return {
        "format": FORMAT,
        "run": run.name,
        "run_id": run.run_id,
        "time": time.time(),
        "reproduced": found.reproduced,
        "result": found.result,
        "covers": found.reproduced and _covered(found.outcomes) == last.env_steps,
        "segments": [asdict(outcome) for outcome in found.outcomes],
        "notes": list(found.notes),
        "digests": {
            "configuration": config,
            "journal": {"sha256": journal, "bytes": last.journal["bytes"]},
            "versions": {version.name: manifest_digest(version) for version in run.store().versions()},
        },
        "versions": dict(package_versions()),
        "numerics": last.details.get("numerics", {}),
        "machine": context_now(),
    }
