"""A study: one configuration trained with several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rltrack.config import TrainingConfig, check_run_name
from rltrack.errors import ConfigurationError
from rltrack.files import replace_text
from rltrack.identity import identity
from rltrack.processes import python_command
from rltrack.runs import Root, RunDirectory, run_stem
from rltrack.studies.jobs import Job, run_jobs, why_unfinished
from rltrack.training.session import equal_identity

STUDY_TAG = "rltrack.study"


@dataclass(frozen=True, slots=True)
class SeedStudy:
    """The outcome of a study.

    Attributes:
        name: The study's name; its runs are ``NAME-s0``, ``NAME-s1``, …
        finished: The finished runs.
        unfinished: The names of the others, with the reason.
    """

    name: str
    finished: Sequence[RunDirectory]
    unfinished: Sequence[tuple[str, str]]


def train_seeds(
    config: TrainingConfig,
    seeds: Sequence[int],
    root: Root,
    *,
    jobs: int = 1,
    notify: Callable[[str], None] = lambda text: None,
) -> SeedStudy:
    """Train a configuration with several seeds; finished runs are skipped, interrupted ones resumed.

    Args:
        config: The training; its name is the study's, and its seed is ignored.
        seeds: The seeds.
        root: Where the runs go.
        jobs: Trainings at a time, each in a separate process.
        notify: Called with each progress message.

    Raises:
        ConfigurationError: If there are no seeds, one is given twice, `jobs` is less than 1, or the agent cannot be built.
        MissingExtra: If a package is missing.
        NameTaken: If a run of this name has another configuration; nothing was started.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}; at least one training must run at a time.")
    name, members = study_members(config, seeds, root)
    folder = root.study_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = []
    for member, own in members.items():
        if root.exists(member) and root.find(member).status().is_finished:
            notify(f"{member}: finished before")
            continue
        file = folder / f"{member}.yaml"
        replace_text(file, own.to_yaml())
        command = python_command("rltrack", "--root", str(root.path), "train", str(file))
        waiting.append(Job(member, command, folder / f"{member}.log"))
    codes = run_jobs(waiting, jobs, notify)
    return _outcome(name, list(members), root, codes)


def study_members(config: TrainingConfig, seeds: Sequence[int], root: Root) -> tuple[str, dict[str, TrainingConfig]]:
    """Check a study; return its name, and the configuration of each of its runs by the run's name.

    Raises:
        ConfigurationError: If there are no seeds, or one is given twice; or if the agent cannot be built.
        MissingExtra: If a package is missing.
        NameTaken: If a run of this name has another configuration.
    """
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigurationError(f"The seeds are {list(seeds)}; give one or more, each once, none below 0.")
    from rltrack.agents.factory import check

    name = config.name or run_stem(f"{config.agent.algorithm}-{config.environment.id}")
    members = {check_run_name(f"{name}-s{seed}"): _member(config, name, seed) for seed in seeds}
    for member, own in members.items():
        _refuse_others(root, member, own)
    check(config)
    root.check_writable()
    return name, members


def _member(config: TrainingConfig, study: str, seed: int) -> TrainingConfig:
    tracking = config.tracking.model_copy(update={"tags": {**config.tracking.tags, STUDY_TAG: study}})
    return config.model_copy(update={"name": f"{study}-s{seed}", "seed": seed, "tracking": tracking})


def _refuse_others(root: Root, name: str, config: TrainingConfig) -> None:
    """Refuse, before anything starts, a name that belongs to a run with another configuration."""
    record = root.find(name).configuration_record() if root.exists(name) else None
    if record is not None:
        equal_identity(root.find(name), [identity(config)], record["identity"])


def _outcome(name: str, members: Sequence[str], root: Root, codes: dict[str, int]) -> SeedStudy:
    finished, unfinished = [], []
    for member in members:
        if root.exists(member) and root.find(member).status().is_finished:
            finished.append(root.find(member))
        else:
            log = root.study_folder(name) / f"{member}.log"
            unfinished.append((member, why_unfinished(codes.get(member), log)))
    return SeedStudy(name, finished, unfinished)
