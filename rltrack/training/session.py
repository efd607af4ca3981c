"""One attempt at a run: its folder, its lock, its journal, its versions."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrack.algorithms import spelled
from rltrack.checkpoints import CheckpointStore, CheckpointWriter, Retention, Version
from rltrack.checkpoints.mirror import Mirror, attempt_of, mirrored_bytes
from rltrack.checkpoints.remote import RemoteRun
from rltrack.checkpoints.unsigned import Claim
from rltrack.errors import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointNotFound,
    JournalDamaged,
    NameTaken,
)
from rltrack.hash_seed import hash_seed
from rltrack.identity import identity_hash
from rltrack.journal import Journal
from rltrack.plain_data import differences
from rltrack.provenance import package_versions
from rltrack.runs import Root, RunDirectory
from rltrack.runs.completeness import JournalPosition
from rltrack.runs.writer import RunWriter
from rltrack.secrets import redacted
from rltrack.training.beginning import beginning_in_versions, refuse_copies, take_back_deliveries
from rltrack.training.fetching import fetch_if_elsewhere, open_remote

if TYPE_CHECKING:
    from rltrack.agents.protocol import State
    from rltrack.evaluation.episodes import Evaluation

MIRROR_SECONDS = 60.0
"""How long the end of a run waits for its copy in a remote store."""


class RunSession:
    """An open run. Close it, or use it as a context.

    Attributes:
        directory: The run's folder.
        journal: Open for appending.
        records: Writes into it.
        store: The run's versions.
        attempt: 1 for the first process, and so on.
        status_before: How the run stood before this process; None for a new one.
        last_attempt: The record of the attempt before; None for the first.
        is_finished: Whether the run was finished before; nothing is left to train.
        is_recovered: Whether the journal lost its beginning, which is then written again from a version.
        resume_differences: What makes the resume from a version differ from a run that was never interrupted; set when the
            attempt begins.
    """

    def __init__(
        self,
        directory: RunDirectory,
        identities: Sequence[Mapping[str, Any]],
        retention: Retention,
        *,
        remote: RemoteRun | None = None,
        temporary: bool,
    ) -> None:
        self.directory = directory
        self.is_mirrored = True
        self._temporary = temporary
        self._remote = remote
        self._mirror: Mirror | None = None
        self._open = contextlib.ExitStack()
        self._open.enter_context(directory.lock())
        try:
            if remote is not None:
                fetch_if_elsewhere(directory, remote)
            has_beginning = directory.has_beginning()
            known = directory.configuration_record() or beginning_in_versions(directory, identities)
            self.identity = identities[0] if known is None else equal_identity(directory, identities, known["identity"])
            self.is_recovered = known is not None and not has_beginning
            has_records = known is not None and directory.journal_file.exists()
            self.status_before = directory.status(held=True) if has_records else None
            self.is_finished = self.status_before is not None and self.status_before.is_finished
            self.journal = Journal(directory.journal_file)
            self.records = RunWriter(self.journal)
            self._open.callback(self.journal.close)
            attempts = [] if known is None else directory.attempts()
            if known is not None:
                take_back_deliveries(directory, known["run_id"], self.journal.position["bytes"])
        except BaseException:
            self._open.close()
            raise
        self.identity_hash = identity_hash(self.identity)
        self.store = CheckpointStore(directory.path / "checkpoints", retention)
        self._writer = CheckpointWriter(self.store, self.journal.sync)
        self._description: dict[str, Any] = {}
        self.is_new = known is None
        self.resume_differences: tuple[str, ...] = ()
        self.run_id = uuid.uuid4().hex if known is None else known["run_id"]
        self.attempt = len(attempts) + 1
        self.last_attempt = attempts[-1] if attempts else None

    @classmethod
    def open(
        cls,
        root: str | Path | None,
        name: str | None,
        base_name: str,
        *,
        identities: Sequence[Mapping[str, Any]],
        config: Mapping[str, Any],
        agent: Mapping[str, Any],
        policy: Mapping[str, Any] | None,
        retention: Retention,
        store: str | None,
        may_exist: bool,
        tracking: bool,
    ) -> RunSession:
        """Open a new run, or one that exists.

        Args:
            root: Where runs are kept.
            name: The run's name, or None for a new unique one.
            base_name: What a new unique name is made from.
            identities: What must be equal for a run to be resumed, any of them; a new run gets the first.
            config: The resolved configuration, written to the folder.
            agent: The agent's description, for the journal.
            policy: How its policy is built, for the journal; None if that is unknown.
            retention: Which versions are kept.
            store: URL of a remote copy of the run; None for none.
            may_exist: Whether an existing run of this name may be resumed.
            tracking: False: in a temporary folder that is removed when closed.

        Raises:
            NameTaken: If the name exists and may not be resumed, or has another identity.
            RunBusy: If another process is training it.
            RootNotWritable: If nothing can be kept there.
        """
        remote = None
        if tracking:
            home = Root(root)
            remote = None if store is None else open_remote(store, name)
            if remote is not None:
                remote.check_writable()
            exists = name is not None and (home.exists(name) or (remote is not None and bool(remote.claims())))
            if exists and not may_exist:
                raise NameTaken(
                    f"A run '{name}' exists under {home.path}{f' or in {remote.url}' if remote else ''}. Choose another name, "
                    "or pass resume=True to resume it."
                )
            directory = home.create(name, base_name)
        else:
            directory = Root(tempfile.mkdtemp(prefix="rltrack-")).create("untracked", "")
        session = cls(directory, identities, retention, remote=remote, temporary=not tracking)
        written = redacted({**_from_anywhere(config), "name": directory.name})
        if not session.is_finished or not directory.configuration().is_buildable:
            directory.write_config(written)
        record = {"identity": _plain(session.identity), "agent": _plain(agent), "policy": policy}
        if session.is_new or session.is_recovered:
            session.records.configuration(session.run_id, record)
        session._description = {**record, "config": _plain(written)}
        return session

    def restore(self) -> tuple[Version, State, list[str]] | None:
        """Return the newest good version with its state, and what was wrong with newer ones; None without any.

        Raises:
            CheckpointCorrupt: If there are versions, and none verifies; or if it belongs to another run.
        """
        found = self.store.newest_good()
        if found is not None:
            version = found[0]
            if version.run_id != self.run_id:
                raise CheckpointCorrupt(
                    f"{version.path} belongs to run {version.run_id}, but {self.directory.journal_file} to run {self.run_id}. One "
                    "of them was copied here from elsewhere: put back the journal and the versions of one and the same run."
                )
            self.store.resume_from(version)
        return found

    def missing_records(self, version: Version | None) -> list[str]:
        """Return what the journal lacks of the records up to a version, in words; without one, of its own numbers."""
        position = None if version is None else journal_position(version)
        return self.directory.history(position, report=False).missing

    def begin_attempt(
        self,
        resumed_from: Version | None,
        *,
        exact: bool,
        seed: int | None,
        environments: Mapping[str, Any] | None,
        choices: Mapping[str, Any] | None = None,
        missing: Sequence[str] = (),
    ) -> None:
        """Record that this process begins, the tier of its environments, and the settings that were chosen automatically.

        Args:
            resumed_from: The version that it resumes from.
            exact: Whether training and record are those of a run that was never interrupted.
            seed: Of the training.
            environments: The tier, with its reason.
            choices: Settings that were chosen automatically, with the reasons.
            missing: Records that the journal has lost.

        Raises:
            JournalDamaged: If the remote store has more of the journal than this folder.
            NameTaken: If another folder next to it holds the same run.
            RunTakenOver: If another machine begins the same attempt.
        """
        if not self.is_new:
            refuse_copies(self.directory, self.run_id)
        if resumed_from is not None:  # a journal that lost its end does not know of every attempt
            self.attempt = max(self.attempt, resumed_from.attempt + 1)
        if self._remote is not None:
            copied = self._copied_bytes(self._remote)
            claims = self._remote.claims()
            number = max(self.attempt, claims[-1].attempt + 1 if claims else 1)
            resumed = resumed_from.number if resumed_from else 0
            claim = Claim(number, self.run_id, resumed, copied, socket.gethostname())
            self._remote.claim(claim)
            self.attempt = number
            self._mirror = Mirror(self._remote, self.directory.path, claim)
        self.records.attempt(
            self.attempt,
            resumed_from=resumed_from.name if resumed_from else None,
            env_steps=resumed_from.env_steps if resumed_from else 0,
            exact=exact,
            environments=environments,
            choices=choices,
            seed=seed,
            missing=missing,
        )

    def _copied_bytes(self, remote: RemoteRun) -> int:
        """Return how much of this journal the store has; what a trainer that was thought dead added there since is not of it."""
        here, copied = self.journal.position["bytes"], mirrored_bytes(self.directory.path)
        if here < copied:  # to continue would mix two journals in the store
            raise JournalDamaged(
                f"{self.directory.journal_file} has {here:,} bytes, but its copy in {remote.url} has {copied:,}: the journal here "
                f"lost its end. Move {self.directory.path} away and resume again; the run is then fetched from the store."
            )
        return min(copied, remote.journal_bytes())

    def finish_copy(self) -> None:
        """Copy to the remote store what a run that is finished still lacks there; `close` waits for it."""
        if self._remote is None:
            return
        claims = self._remote.claims()
        if claims and claims[-1].attempt == attempt_of(self.directory.path):
            rest = dataclasses.replace(claims[-1], journal_bytes=self._remote.journal_bytes())
            self._mirror = Mirror(self._remote, self.directory.path, rest)

    def commit(
        self,
        state: State,
        *,
        env_steps: int,
        score: float | None,
        numerics: Mapping[str, Any] | None = None,
        environments: Mapping[str, Any] | None = None,
    ) -> None:
        """Serialise a version with the journal's position; a thread fsyncs the journal and commits. See `record_committed`."""
        details = {
            "journal": self.journal.position,
            "run_id": self.run_id,
            "identity": self.identity_hash,
            "attempt": self.attempt,
            "versions": package_versions(),
            "numerics": {**(numerics or {}), "hash_seed": hash_seed()},
            "environments": dict(environments or {}),
            "configuration": self._description,
        }
        self._writer.submit(self.store.prepare(state, env_steps=env_steps, score=score, details=details))

    def record_committed(self, *, wait: bool = False) -> Iterator[Version | CheckpointFailed]:
        """Record the versions that were committed since the last call, and yield them, or why one was not.

        Args:
            wait: Whether to wait for those that are on their way.

        Raises:
            JournalFailed: If the journal could not be fsynced before a commit.
            RunTakenOver: If another machine went on with the run.
        """
        if self._mirror is not None:
            for problem in self._mirror.take_problems():
                self.records.warning(problem)
        for future in self._writer.take(wait=wait):
            try:
                version = future.result()
            except CheckpointFailed as error:
                yield error
                continue
            self.records.checkpoint(version)
            if self._mirror is not None:
                self._mirror.wake()
            yield version

    def best(self) -> Version | None:
        """Return the best committed version, or None."""
        try:
            return self.store.find("best")
        except CheckpointNotFound:
            return None

    def version_of(self, evaluation: Evaluation) -> Version | None:
        """Return the version of the policy that was evaluated, or None if it is gone."""
        found = [
            version
            for version in self.store.versions()
            if version.score == evaluation.mean and version.env_steps == evaluation.env_steps
        ]
        return found[-1] if found else None

    def close(self) -> None:
        """Wait for what is on its way to the disk and to the store; release the journal and the lock."""
        self._writer.close()
        if self._mirror is not None:
            self.is_mirrored = self._mirror.close(MIRROR_SECONDS)
        self._open.close()
        if self._temporary:
            shutil.rmtree(self.directory.root, ignore_errors=True)


def journal_position(version: Version) -> JournalPosition:
    """Return where the journal stood when a version was written."""
    return JournalPosition(version.name, version.env_steps, version.journal["next_seq"], version.journal["bytes"])


def _from_anywhere(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With TensorBoard's folder as every process finds it, wherever it was started."""
    tracking = config.get("tracking")
    if not isinstance(tracking, Mapping) or not tracking.get("tensorboard_log_dir"):
        return config
    folder = str(Path(tracking["tensorboard_log_dir"]).expanduser().absolute())
    return {**config, "tracking": {**tracking, "tensorboard_log_dir": folder}}


def _plain(tree: Mapping[str, Any]) -> Any:
    """As JSON would give it back, without secrets, so that comparing with a stored identity is fair."""
    import orjson

    return redacted(orjson.loads(orjson.dumps(tree, default=str, option=orjson.OPT_NON_STR_KEYS)))


def equal_identity(
    directory: RunDirectory, ours: Sequence[Mapping[str, Any]], theirs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return which of our identities is the run's.

    Raises:
        NameTaken: If none is, with the differences to the most similar one.
    """
    changed = [differences(_as_written_now(theirs, each), _plain(each)) for each in ours]
    nearest = min(changed, key=len)
    if not nearest:
        return ours[changed.index(nearest)]
    lines = "\n  ".join(nearest)
    raise NameTaken(
        f"Run '{directory.name}' exists with another configuration (its value → yours):\n  {lines}\n"
        "Choose another name, or pass the run's own configuration to resume it."
    )


def _as_written_now(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    """An older run's identity, with what is written otherwise today: algorithms as typed, environments without a name."""
    agent, own = theirs.get("agent"), ours.get("agent")
    if not isinstance(agent, Mapping):
        return theirs
    agent = dict(agent)
    if isinstance(agent.get("algorithm"), str):
        agent["algorithm"] = spelled(agent["algorithm"])
    if agent.get("environment") in ("DummyVecEnv", "SubprocVecEnv") and isinstance(own, Mapping):
        agent["environment"] = own.get("environment")
    return {**theirs, "agent": agent}
