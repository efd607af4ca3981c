"""A sweep as an Optuna study: every trial exists from the start, is trained by one worker, and its result is stored once.

Only Optuna's storage knows which trials there are: a sqlite file under the root, or any database that Optuna supports, for
several machines. Trial *k*'s runs are named ``NAME-t000k``, so that any worker can resume them.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rltrack.addresses import sqlite_path, sqlite_uri
from rltrack.config import TrainingConfig, check_run_name
from rltrack.errors import ConfigurationError, MissingExtra, RltrackError, RunBusy, did_you_mean
from rltrack.files import take_lock
from rltrack.identity import identity
from rltrack.plain_data import differences, with_values
from rltrack.ranking import is_score, rank
from rltrack.runs import Root
from rltrack.secrets import redacted, without_password
from rltrack.studies.seeds import STUDY_TAG
from rltrack.studies.space import SweepSection, named, suggest

if TYPE_CHECKING:
    import optuna

STORAGE = "RLTRACK_SWEEP_STORAGE"
"""Environment variable with the address of the trials' database; unset: a sqlite file under the root."""

TRIAL_TAG = "rltrack.trial"
_FILE, _FILE_SECONDS = "trials.db", 120
_DEFINITION = "rltrack"
_FIXED = ("parameters", "space", "seeds", "objective")


def load_optuna() -> Any:
    """Import Optuna and silence its logging.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtra("Sweeps need Optuna, which is not installed: pip install 'rltrack[sweep]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Search:
    """The trials of one sweep.

    Args:
        name: The sweep's name.
        root: Folder of all runs.
        storage: Address of the database; omitted: ``RLTRACK_SWEEP_STORAGE``, or a file under the root.

    Raises:
        MissingExtra: If Optuna is missing.
    """

    def __init__(self, name: str, root: Root, storage: str | None = None) -> None:
        self.name, self.root = check_run_name(name), root
        self.optuna = load_optuna()
        self.folder = root.study_folder(name)
        self._url = storage or os.environ.get(STORAGE)
        self.environment = {} if self._url is None else {STORAGE: self._url}
        """What another process needs to find the same trials."""
        self._storage: Any = None
        self.study: Any = None
        self.base: dict[str, Any] = {}
        self.section: SweepSection

    def _connect(self) -> Any:
        if self._url is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            url = sqlite_uri(self.folder / _FILE).replace("{", "{{").replace("}", "}}")  # Optuna formats addresses
            options: dict[str, Any] = {"connect_args": {"timeout": _FILE_SECONDS}}
        else:
            url, options = self._url, {"pool_pre_ping": True}
        for plain in ("postgresql://", "postgres://"):
            if url.startswith(plain):
                url = f"postgresql+psycopg://{url.removeprefix(plain)}"
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError

        shown = without_password(url)
        try:
            return self.optuna.storages.RDBStorage(url, engine_kwargs=options)
        except ImportError as error:
            raise MissingExtra(f"The trials' database {shown} needs a driver: {without_password(str(error))}. For PostgreSQL: "
                               "pip install 'rltrack[postgres]'.") from None  # fmt: skip
        except ArgumentError:
            raise ConfigurationError(
                f"The trials' database {shown!r} is not an address that SQLAlchemy knows. Write sqlite:////path/file.db or "
                "postgresql://user@host/database."
            ) from None
        except (SQLAlchemyError, RuntimeError) as error:
            raise RltrackError(
                f"The trials' database {shown} does not answer: {without_password(str(error).splitlines()[0])}"
            ) from None

    def open(
        self,
        base: Mapping[str, Any] | None = None,
        section: SweepSection | None = None,
        *,
        read_only: bool = False,
    ) -> Search:
        """Start the sweep, or resume it.

        Args:
            base: The training; None for the one that the sweep was started with.
            section: How to search; likewise.
            read_only: Make no trials and store nothing; without `base` and `section`.

        Raises:
            ConfigurationError: If there is no such sweep, it was started with other settings, or sampler or pruner reject
                their arguments.
            MissingExtra: If the sampler's package, or the database's driver, is missing.
            RltrackError: If the database does not answer.
            RunBusy: If another process on this machine starts the sweep, and does not end.
        """
        if section is None:
            self._check_exists()
        else:
            self._check(section)
        with contextlib.nullcontext() if read_only else self._lock():
            self._open(base, section, read_only)
        return self

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Of processes that start the sweep at the same time, one makes its tables and its trials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(self.folder / "lock.open", wait_seconds=_FILE_SECONDS)
        if lock is None:
            raise RunBusy(f"Another process on this machine is starting the sweep {self.name}. Wait for it.")
        try:
            yield
        finally:
            os.close(lock)

    def _check_exists(self) -> None:
        file = self.folder / _FILE if self._url is None else sqlite_path(self._url)
        if file is not None and not file.exists():  # connecting would create it
            raise self._unknown(sorted(path.parent.name for path in self.folder.parent.glob(f"*/{_FILE}")))
        with self._lock() if self.folder.is_dir() else contextlib.nullcontext():
            self._storage = self._storage or self._connect()
        try:
            self._storage.get_study_id_from_name(self.name)
        except KeyError:
            names = [item.study_name for item in self.optuna.get_all_study_summaries(self._storage)]
            raise self._unknown(names) from None

    def _open(self, base: Mapping[str, Any] | None, section: SweepSection | None, read_only: bool) -> None:
        optuna = self.optuna
        self._storage = self._storage or self._connect()
        try:
            study_id = self._storage.get_study_id_from_name(self.name)
        except KeyError:
            study_id = optuna.create_study(
                study_name=self.name, storage=self._storage, direction="maximize", load_if_exists=True
            )._study_id
        known = self._storage.get_study_user_attrs(study_id).get(_DEFINITION)
        if base is None or section is None:
            if known is None:
                raise ConfigurationError(f"The Optuna study '{self.name}' was not started by rltrack sweep.")
            base, section = known["config"], SweepSection.model_validate(known["sweep"])
        elif known is not None:
            self._refuse_other(known, base, section)
        self.base, self.section = json.loads(json.dumps(base)), section
        definition = {"config": self.base, "sweep": section.model_dump(mode="json", by_alias=True)}
        if known != definition and not read_only:
            self._storage.set_study_user_attr(study_id, _DEFINITION, definition)
        self.study = optuna.load_study(
            study_name=self.name, storage=self._storage, sampler=self._sampler(0), pruner=self._pruner()
        )
        if not read_only:
            self._make_trials()

    def _unknown(self, known: Sequence[str]) -> ConfigurationError:
        return ConfigurationError(
            f"No sweep '{self.name}'.{did_you_mean(self.name, known)} Known here: {', '.join(known) or 'none'}. Start one with "
            "rltrack sweep CONFIG."
        )

    def _check(self, section: SweepSection) -> None:
        """Check names, sampler and pruner before anything is created."""
        self.section = section
        for name in self.run_names(section.number_of_trials - 1):
            check_run_name(name)
        self._sampler(0)
        self._pruner()

    def _refuse_other(self, known: Mapping[str, Any], base: Mapping[str, Any], section: SweepSection) -> None:
        theirs, ours = TrainingConfig.from_mapping(known["config"]), TrainingConfig.from_mapping(base)
        before, now = known["sweep"], section.model_dump(mode="json", by_alias=True)
        found = differences(
            {**identity(theirs), "sweep": {key: before[key] for key in _FIXED}},
            {**identity(ours), "sweep": {key: now[key] for key in _FIXED}},
        )
        if found:
            raise ConfigurationError(
                f"Sweep '{self.name}' was started with other settings:\n"
                + "\n".join(found)
                + "\nChoose another --name."
            )

    def _make_trials(self) -> None:
        """Add missing trials to the storage; they wait there for a worker."""
        optuna = self.optuna
        missing = range(len(self.study.get_trials(deepcopy=False)), self.section.number_of_trials)
        grid = self.section.grid() if self.section.sampler_name == "grid" else None
        for index in missing:
            system = {} if grid is None else {"fixed_params": grid[index]}
            self.study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs=system))

    def _sampler(self, number: int) -> Any:
        """Return the sampler of one trial. Each has its own random stream, independent of where and when it starts."""
        samplers, (name, arguments) = self.optuna.samplers, named(self.section.sampler)
        seed = int(np.random.SeedSequence([self.section.seed, number]).generate_state(1)[0])
        kind = {"tpe": "TPESampler", "random": "RandomSampler", "grid": "RandomSampler", "qmc": "QMCSampler",
                "cmaes": "CmaEsSampler", "gp": "GPSampler"}[name]  # fmt: skip
        if name == "tpe":
            arguments = {"constant_liar": True, **arguments}  # running trials count, so that others explore elsewhere
        if name == "qmc":
            # one sequence for all trials, which starts when the first trial has ended
            arguments = {"independent_sampler": samplers.RandomSampler(seed=seed), **arguments}
            seed = self.section.seed
        return _build(getattr(samplers, kind), {"seed": seed, **arguments}, "sampler", name)

    def _pruner(self) -> Any:
        pruners, (name, arguments) = self.optuna.pruners, named(self.section.pruner)
        kind = {"none": "NopPruner", "median": "MedianPruner", "halving": "SuccessiveHalvingPruner",
                "hyperband": "HyperbandPruner"}[name]  # fmt: skip
        return _build(getattr(pruners, kind), arguments, "pruner", name)

    def trials(self) -> list[Any]:
        """Return Optuna's frozen trials that belong to the sweep, by number."""
        return list(self.study.get_trials(deepcopy=False))[: self.section.number_of_trials]

    def unfinished(self) -> list[int]:
        """Return the numbers of the trials without a result: waiting, running, or interrupted."""
        return [trial.number for trial in self.trials() if not trial.state.is_finished()]

    def best(self) -> Any | None:
        """Return the best complete trial, or None."""
        done = [trial for trial in self.trials() if trial.state.name == "COMPLETE" and is_score(trial.value)]
        return max(done, key=lambda trial: rank(trial.value)) if done else None

    def begin(self, number: int) -> tuple[optuna.Trial, dict[str, Any]]:
        """Start a trial, or resume it with the same values.

        Returns:
            Optuna's trial, and its values by configuration key.

        Raises:
            ConfigurationError: If there is no such trial, or it has a result.
        """
        trials = self.trials()
        if not 0 <= number < len(trials):
            raise ConfigurationError(f"Sweep '{self.name}' has the trials 0 to {len(trials) - 1}, not {number}.")
        frozen = trials[number]
        if frozen.state.is_finished():
            raise ConfigurationError(f"Trial {number} of sweep '{self.name}' is {frozen.state.name} already.")
        self._storage.set_trial_state_values(frozen._trial_id, self.optuna.trial.TrialState.RUNNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's experimental features
            self.study.sampler = self._sampler(number)
            trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
            return trial, suggest(trial, self.base, self.section)

    def tell(self, number: int, state: str, value: float | None, reason: str) -> None:
        """Store a trial's result, unless it has one.

        Args:
            number: Which trial.
            state: ``complete``, ``pruned`` or ``failed``.
            value: Its objective, if it is complete.
            reason: Why it ended.
        """
        states = self.optuna.trial.TrialState
        if state == "failed":
            self._storage.set_trial_user_attr(self.trials()[number]._trial_id, "reason", reason)
        final = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        self.study.tell(number, value if state == "complete" else None, state=final, skip_if_finished=True)

    def configs(self, number: int, values: Mapping[str, Any]) -> list[TrainingConfig]:
        """Return a trial's configurations, one for each seed.

        Raises:
            ConfigurationError: If the values do not make a valid configuration.
        """
        config = TrainingConfig.from_mapping(with_values(self.base, values), source=f"trial {number}")
        tags = {**config.tracking.tags, STUDY_TAG: self.name, TRIAL_TAG: str(number)}
        tracking = config.tracking.model_copy(update={"tags": tags})
        return [
            config.model_copy(update={"name": name, "seed": config.seed + index, "tracking": tracking})
            for index, name in enumerate(self.run_names(number))
        ]

    def run_names(self, number: int) -> list[str]:
        """Return the names of a trial's runs."""
        name, seeds = trial_name(self.name, number), self.section.seeds
        return [name] if seeds == 1 else [f"{name}-s{index}" for index in range(seeds)]

    def values_of(self, number: int) -> dict[str, Any]:
        """Return a finished trial's values by configuration key."""
        frozen = self.trials()[number]
        fixed = self.optuna.trial.FixedTrial(frozen.params, number=number)
        return suggest(fixed, self.base, self.section)


def trial_name(sweep: str, number: int) -> str:
    """Return a trial's name."""
    return f"{sweep}-t{number:04d}"


def _build(kind: Any, arguments: Mapping[str, Any], what: str, name: str) -> Any:
    known = [key for key in inspect.signature(kind).parameters if key != "self"]
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise ConfigurationError(
            f"sweep.{what}: {name} has no argument '{unknown[0]}'.{did_you_mean(unknown[0], known)} It has: {', '.join(known)}."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"sweep.{what}: {name} does not accept {redacted(arguments)}: {error}.") from None
    except ImportError as error:
        raise MissingExtra(f"sweep.{what}: {name} needs a package: {' '.join(str(error).split())}") from None
