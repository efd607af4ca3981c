"""What a remote store holds without a signature: attempts, the journal, and configurations of before they were signed.

Anyone who may write to the store can write these. They are read as data of which nothing is certain: what is not as rltrack writes
it is `CheckpointCorrupt`, and nothing of it is imported, executed or used as a path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import yaml

from rltrack.config import TrainingConfig
from rltrack.errors import CheckpointCorrupt, ConfigurationError
from rltrack.identity import identity, identity_hash
from rltrack.journal import decode_record

_RUN_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_LONGEST_HOST = 255


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at a run, as the store knows it.

    Attributes:
        attempt: 1, 2, 3, …, over all machines.
        run_id: Of the run; another run of the same name has another.
        resumed_from: Number of the version from which it resumed; 0 for none.
        journal_bytes: Size of the journal with which it began, in bytes, as far as the store has it.
        host: Where it runs.
    """

    attempt: int
    run_id: str
    resumed_from: int
    journal_bytes: int
    host: str


def claim_of(data: bytes, attempt: int, source: str) -> Claim:
    """Return the attempt that a file describes.

    Args:
        data: The file.
        attempt: Its number, by the file's name.
        source: What the file is called in an error.

    Raises:
        CheckpointCorrupt: If it does not describe that attempt.
    """
    try:
        found = orjson.loads(data)
        claim = Claim(**{name: found[name] for name in Claim.__slots__})
    except (ValueError, TypeError, KeyError):
        raise CheckpointCorrupt(f"{source} does not describe an attempt. {_REMEDY}") from None
    numbers = (claim.attempt, claim.resumed_from, claim.journal_bytes)
    if any(type(number) is not int or number < 0 for number in numbers) or claim.attempt != attempt:
        raise CheckpointCorrupt(f"{source} has numbers that no attempt {attempt} has. {_REMEDY}")
    if not isinstance(claim.run_id, str) or not _RUN_ID.fullmatch(claim.run_id) or not isinstance(claim.host, str):
        raise CheckpointCorrupt(f"{source} has no run's id or no host's name. {_REMEDY}")
    host = "".join(letter if letter.isprintable() else "?" for letter in claim.host[:_LONGEST_HOST])
    return Claim(*numbers[:1], claim.run_id, *numbers[1:], host)


def check_journal(data: bytes, run_id: str, source: str) -> None:
    """Find out whether a journal is one of this run, with records as rltrack writes them; a torn last line is none.

    Raises:
        CheckpointCorrupt: With the line.
    """
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            record = decode_record(line)
        except ValueError as error:
            raise CheckpointCorrupt(f"{source}, line {number}: {error}. {_REMEDY}") from None
        if number == 1 and (record["kind"] != "configuration" or record["run_id"] != run_id):
            raise CheckpointCorrupt(f"{source} is not the journal of run {run_id}. {_REMEDY}")


def unsigned_configuration(
    data: bytes, manifest: Mapping[str, Any] | None, *, name: str, store: str, source: str
) -> bytes:
    """Return what can be taken from a configuration that has no signature.

    What changes a run's result must be as the signed manifest says, which holds its hash. The rest is not known to be
    ours: it is left out, so that its defaults hold.

    Args:
        data: The file.
        manifest: Of the newest version, whose signature holds; None if there is no version.
        name: The run's name.
        store: Address of the store, to which the run continues to be copied.
        source: What the file is called in an error.

    Raises:
        CheckpointCorrupt: If it is not what the run was trained with.
    """
    try:
        given = yaml.safe_load(data)
        if not isinstance(given, dict):
            raise ConfigurationError("it is no mapping")
        if not isinstance(given.get("environment"), dict) or "id" not in given["environment"]:
            # of a script's agent: nothing is built from it, and nothing in it may say where to write
            rest = {key: value for key, value in given.items() if key not in ("tracking", "checkpoints", "environment")}
            return yaml.safe_dump({**rest, "name": name}, sort_keys=False, allow_unicode=True).encode()
        found = identity(TrainingConfig.from_mapping(given))
        typed = {**found, "agent": {**found["agent"], "algorithm": given["agent"]["algorithm"]}}
        known = None if manifest is None else manifest.get("identity")
        if known not in (identity_hash(found), identity_hash(typed)):
            raise ConfigurationError("it is not what the newest signed version was trained with")
        kept = {**found, "name": name, "checkpoints": {**found["checkpoints"], "store": store}}
        return TrainingConfig.from_mapping(kept).to_yaml().encode()
    except (yaml.YAMLError, ConfigurationError, UnicodeDecodeError) as error:
        raise CheckpointCorrupt(
            f"{source} has no signature, and is not used: {error}. Go on once on the machine where the run was trained, with this "
            "rltrack, which signs it."
        ) from None


_REMEDY = "It was changed or damaged in the store; resume from a copy of the run that you trust."
