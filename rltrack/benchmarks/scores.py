"""Scores with the tuned settings over several seeds, against rl_zoo3's published ones.

Each cell of the published table is one trained agent: mean ± standard deviation over the episodes of about 150,000
evaluation steps. Here the final policy of each seed plays fresh episodes; the median over seeds must be no worse than the
published mean minus one standard deviation.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrack.config import TrainingConfig
from rltrack.errors import ConfigurationError, RltrackError
from rltrack.processes import python_command
from rltrack.provenance import package_versions
from rltrack.runs import Root

EVALUATION_EPISODES = 100


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: a configuration, and its result in rl_zoo3's benchmark.md."""

    config: str
    algorithm: str
    environment: str
    mean: float
    std: float

    @property
    def bar(self) -> float:
        """The target of the median over seeds."""
        return self.mean - self.std


CASES = (
    Case("cartpole_ppo", "PPO", "CartPole-v1", 500.0, 0.0),
    Case("cartpole_dqn", "DQN", "CartPole-v1", 500.0, 0.0),
    Case("pendulum_sac", "SAC", "Pendulum-v1", -157.0, 88.7),
    Case("pendulum_td3", "TD3", "Pendulum-v1", -151.9, 90.2),
    Case("mountaincar_continuous_sac", "SAC", "MountainCarContinuous-v0", 94.7, 1.1),
)


def run_scores(
    folder: Path,
    root: Root,
    *,
    seeds: int = 5,
    jobs: int = 2,
    only: Iterable[str] = (),
    notify: Callable[[str], None] = lambda message: None,
) -> list[dict[str, Any]]:
    """Train every case with every seed, `jobs` at a time, each in a separate process.

    Finished runs are not trained again, so that an interrupted benchmark can be resumed.

    Args:
        folder: Where the configurations are.
        root: Where the runs go.
        seeds: Seeds 0, 1, 2, … for each case.
        jobs: Processes at a time.
        only: Names of configurations; empty for all.
        notify: Called with each progress message.

    Returns:
        One row per case: ``scores`` (mean return per seed), ``best_scores``, ``median``, ``bar``, ``passed``, ``seconds``.

    Raises:
        ConfigurationError: If a name in `only` is unknown, or a configuration is missing.
    """
    wanted = list(only)
    unknown = set(wanted) - {case.config for case in CASES}
    if unknown:
        names = ", ".join(case.config for case in CASES)
        raise ConfigurationError(f"Unknown case {', '.join(sorted(unknown))}. Known: {names}.")
    cases = [case for case in CASES if not wanted or case.config in wanted]
    waiting = deque((case, seed) for case in cases for seed in range(seeds))
    for case in cases:
        TrainingConfig.from_file(folder / f"{case.config}.yaml")
    running: list[tuple[Case, int, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                case, seed = waiting.popleft()
                running.append((case, seed, _start(folder, root, case, seed)))
                notify(f"{case.config}, seed {seed}: started")
            for entry in list(running):
                case, seed, process = entry
                try:
                    code = process.wait(1.0)
                except subprocess.TimeoutExpired:
                    continue
                running.remove(entry)
                if code != 0:
                    raise RltrackError(
                        f"{case.config} with seed {seed} ended with exit code {code}; see its train.log."
                    )
                notify(f"{case.config}, seed {seed}: done")
    finally:
        for _, _, process in running:
            process.terminate()
    return [_row(root, case, seeds) for case in cases]


def _run_name(case: Case, seed: int) -> str:
    return f"score-{case.config.replace('_', '-')}-s{seed}"


def _start(folder: Path, root: Root, case: Case, seed: int) -> subprocess.Popen[bytes]:
    command = python_command("rltrack.benchmarks.scores", str(folder), str(root.path), case.config, str(seed))
    return subprocess.Popen(command)


def train_and_score(folder: Path, root: Root, config_name: str, seed: int) -> None:
    """Train one seed if it is not finished, and play its final and its best policy."""
    from rltrack.training.trainer import Trainer, evaluate_run

    case = next(case for case in CASES if case.config == config_name)
    overrides = [f"seed={seed}", f"name={_run_name(case, seed)}", "tracking.experiment=scores"]
    trainer = Trainer(TrainingConfig.from_file(folder / f"{config_name}.yaml", overrides), root=root.path)
    trainer.train()
    run = root.find(_run_name(case, seed))
    result = {"seconds": trainer.loop.statistics.seconds}
    for version in ("last", "best"):
        _, evaluation = evaluate_run(run, version, episodes=EVALUATION_EPISODES)
        result[version] = evaluation.mean
    (run.path / "score.json").write_text(json.dumps(result), encoding="utf-8")


def _row(root: Root, case: Case, seeds: int) -> dict[str, Any]:
    results = [json.loads((root.find(_run_name(case, seed)).path / "score.json").read_bytes()) for seed in range(seeds)]
    scores = [result["last"] for result in results]
    median = statistics.median(scores)
    return {
        "algorithm": case.algorithm,
        "environment": case.environment,
        "config": case.config,
        "scores": scores,
        "best_scores": [result["best"] for result in results],
        "median": median,
        "published": [case.mean, case.std],
        "bar": case.bar,
        "passed": median >= case.bar,
    }


def as_markdown(rows: list[dict[str, Any]], command: str) -> str:
    """Return the table as a page of the documentation."""
    seeds = len(rows[0]["scores"]) if rows else 0
    lines = [
        "# Scores with the tuned settings",
        "",
        f"Made by `{command}`: {seeds} seeds each, the final policy played on {EVALUATION_EPISODES} fresh episodes, "
        "deterministic. The target is rl_zoo3's published mean minus one standard deviation (one trained agent each).",
        "",
        f"| algorithm | environment | {' | '.join(f'seed {seed}' for seed in range(seeds))} | **median** | target | published |"
        " best versions, median |",
        "|" + "---|" * (seeds + 6),
    ]
    for row in rows:
        cells = [f"{score:.1f}" for score in row["scores"]]
        median = f"**{row['median']:.1f}** {'✓' if row['passed'] else '✗'}"
        published = f"{row['published'][0]:g} ± {row['published'][1]:g}"
        best = statistics.median(row["best_scores"])
        lines.append(
            f"| {row['algorithm']} | {row['environment']} | {' | '.join(cells)} | {median} | {row['bar']:.1f} | "
            f"{published} | {best:.1f} |"
        )
    versions = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    lines += [
        "",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, one torch thread per run.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    train_and_score(Path(sys.argv[1]), Root(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
