"""What tracking costs a training: rltrack with everything on, against SB3 alone and SB3 with its usual writers.

rltrack also accelerates a training, which would hide what tracking costs: it is measured with and without acceleration.

Each trial is a separate process, ``python -m rltrack.benchmarks.overhead CASE WAY FOLDER STEPS``, and times the training
only, without imports and construction of the model. Ways are interleaved. The result is the fastest trial of each way over
the fastest of bare ``learn()``, since other load only adds time; the spread is reported too.
"""

from __future__ import annotations

import json
import os
import platform
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rltrack.errors import RltrackError
from rltrack.processes import python_command
from rltrack.provenance import package_versions
from rltrack.tracking.sinks.embedded import ensure_database

WAYS = ("bare", "rltrack", "plain", "tensorboard", "mlflow", "witness")
TITLES = {
    "bare": "bare `learn()`",
    "rltrack": "rltrack, everything on",
    "plain": "rltrack, acceleration off",
    "tensorboard": "SB3's TensorBoard writer",
    "mlflow": "SB3's MLflow recipe",
}
_COMPARISONS = 3
"""Trials of the ways that are shown for comparison only."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained.

    Attributes:
        algorithm: Of SB3.
        env_id: Gymnasium id.
        hyperparameters: Beside SB3's defaults.
        steps: Env steps of a trial: about half a minute, since the shipper's start takes a third of a second, once.
        bar: What the ratio without acceleration must not exceed.
        mlflow_share: Share of the steps with the MLflow recipe, which is many times slower.
    """

    algorithm: str
    env_id: str
    hyperparameters: dict[str, Any]
    steps: int
    bar: float
    mlflow_share: float = 1.0


CASES = {
    "PPO": Case("PPO", "CartPole-v1", {}, 32_768, 1.02),
    "A2C": Case("A2C", "CartPole-v1", {}, 32_000, 1.05, 0.05),
    "DQN": Case("DQN", "CartPole-v1", {"learning_starts": 1000}, 50_000, 1.02, 0.1),
    "SAC": Case("SAC", "Pendulum-v1", {"learning_starts": 100}, 2_400, 1.02),
}


@dataclass
class Result:
    """What was measured of a case.

    Attributes:
        case: Its name.
        seconds: Of each way, seconds per 1000 env steps of each trial.
        cpu_share: CPU time inside rltrack's own calls over that of the whole training without acceleration, by trial.
    """

    case: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in TITLES})
    cpu_share: list[float] = field(default_factory=list)

    def ratio(self, way: str) -> float:
        """Fastest trial over the fastest bare one."""
        return min(self.seconds[way]) / min(self.seconds["bare"])

    def median_ratio(self, way: str) -> float:
        """The ratio of the medians: noisier, but independent of a lucky trial."""
        return statistics.median(self.seconds[way]) / statistics.median(self.seconds["bare"])

    def spread(self, way: str) -> float:
        """Slowest trial over the fastest one of the same way."""
        return max(self.seconds[way]) / min(self.seconds[way])

    @property
    def passed(self) -> bool:
        """Whether the target is reached."""
        return self.ratio("plain") <= CASES[self.case].bar


def measure_overhead(
    only: Sequence[str] = (), *, trials: int = 5, notify: Callable[[str], None] = print
) -> list[Result]:
    """Train each case in each way, interleaved.

    Args:
        only: Names of cases; empty for all.
        trials: Of bare and of rltrack; the others get three.
        notify: Called with each progress message.
    """
    results = []
    with tempfile.TemporaryDirectory() as root:
        ensure_database(Path(root))  # once for each root, not once for each training
        for name in only or CASES:
            results.append(_measure_case(name, trials, root, notify))
    return results


def _measure_case(name: str, trials: int, root: str, notify: Callable[[str], None]) -> Result:
    result = Result(name)
    for trial in range(trials):
        for way in WAYS:
            if way in ("tensorboard", "mlflow", "witness") and trial >= _COMPARISONS:
                continue
            found = _run_trial(name, way, root)
            if way == "witness":
                result.cpu_share.append(found["ours"] / found["cpu"])
            else:
                result.seconds[way].append(1000 * found["seconds"] / found["steps"])
        notify(f"{name}, trial {trial + 1} of {trials}: " + ", ".join(
            f"{way} {result.ratio(way):.3f}" for way in TITLES if result.seconds[way]
        ))  # fmt: skip
    return result


def as_markdown(results: Sequence[Result], command: str) -> str:
    """Return the table, with machine, versions and command."""
    lines = [
        f"Fastest of each way over the fastest bare `learn()`; {os.cpu_count()} cores, {platform.machine()}, "
        + ", ".join(f"{name} {number}" for name, number in package_versions().items())
        + f". Command: `{command}`.",
        "",
        "| training | bare, s per 1000 steps | rltrack | acceleration off | target | of medians | spread bare, off | "
        "CPU inside tracking | SB3's TensorBoard writer | SB3's MLflow recipe |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        case = CASES[result.case]
        lines.append(
            f"| {case.algorithm}, {case.env_id} | {min(result.seconds['bare']):.3f} | {result.ratio('rltrack'):.2f} | "
            f"**{result.ratio('plain'):.3f}** | {case.bar} | {result.median_ratio('plain'):.3f} | "
            f"{result.spread('bare'):.2f}, {result.spread('plain'):.2f} | "
            f"{100 * min(result.cpu_share):.2f} % | {result.ratio('tensorboard'):.2f} | {result.ratio('mlflow'):.1f} |"
        )
    return "\n".join(lines) + "\n"


def _run_trial(case: str, way: str, root: str) -> dict[str, float]:
    """Run a trial in a separate process, with a terminal for the progress bar."""
    steps = round(CASES[case].steps * (CASES[case].mlflow_share if way == "mlflow" else 1.0))
    with tempfile.TemporaryDirectory() as folder:
        master, slave = pty.openpty()
        shown = bytearray()
        drain = threading.Thread(target=_drain, args=(master, shown), daemon=True)
        drain.start()
        environment = {**os.environ, "RLTRACK_ROOT": root, "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        try:
            done = subprocess.run(
                python_command("rltrack.benchmarks.overhead", case, way, folder, str(steps)),
                stdout=subprocess.PIPE, stderr=slave, env=environment, cwd=folder,
            )  # fmt: skip
        finally:
            os.close(slave)
            drain.join(5)
            os.close(master)
        if done.returncode != 0:
            raise RltrackError(f"The trial of {case}, {way}, failed: {shown[-2000:].decode(errors='replace')}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _drain(master: int, shown: bytearray) -> None:
    try:
        while data := os.read(master, 65536):
            shown += data
    except OSError:
        return


def _trial(case_name: str, way: str, folder: Path, steps: int) -> dict[str, float]:
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger, configure

    case = CASES[case_name]
    torch.set_num_threads(1)
    model = getattr(stable_baselines3, case.algorithm)(
        "MlpPolicy", make_vec_env(case.env_id, seed=0), seed=0, device="cpu", **case.hyperparameters
    )
    if way in ("rltrack", "plain", "witness"):
        return {**_train_with_rltrack(model, steps, way), "steps": steps}
    if way == "tensorboard":
        model.set_logger(configure(str(folder / "tb"), ["tensorboard"]))
    elif way == "mlflow":
        from rltrack.benchmarks.mlflow_recipe import start_recipe

        model.set_logger(Logger(None, [start_recipe(f"sqlite:///{folder / 'mlflow.db'}")]))
    begin = time.perf_counter()
    model.learn(steps)
    return {"seconds": time.perf_counter() - begin, "steps": steps}


def _train_with_rltrack(model: Any, steps: int, way: str) -> dict[str, float]:
    from rltrack import ProgressReporter, TrainingHook, TrainingLoop
    from rltrack.agents.sb3 import SB3Agent

    class Clock(TrainingHook):
        begin = end = cpu = 0.0

        def on_training_start(self, progress: Any) -> None:
            self.begin, self.cpu = time.perf_counter(), time.thread_time()

        def on_training_end(self, progress: Any) -> None:
            self.end, self.cpu = time.perf_counter(), time.thread_time() - self.cpu

    clock, agent = Clock(), SB3Agent(model, acceleration="auto" if way == "rltrack" else "off")
    spent = _LearningTime()
    if way == "witness":
        agent.advance = spent.around(agent.advance)  # type: ignore[method-assign, assignment]
    loop = TrainingLoop(
        agent, model.get_env(), total_timesteps=steps, hooks=[clock], reporter=ProgressReporter(console=True)
    )
    loop.run()
    if not loop.wait_for_tracking(120):
        raise RuntimeError("the trial was not delivered")
    ours = clock.cpu - spent.learning - spent.of_the_clock
    return {"seconds": clock.end - clock.begin, "cpu": clock.cpu, "ours": ours}


class _LearningTime:
    """CPU time of learning itself: inside `advance`, without the calls of the observer."""

    def __init__(self) -> None:
        self.learning = 0.0
        self._observing = 0.0
        self._readings = 0
        begin = time.thread_time()
        for _ in range(10_000):
            time.thread_time()
        self._reading = (time.thread_time() - begin) / 10_000

    @property
    def of_the_clock(self) -> float:
        """The cost of reading the clock, as far as it is not in `learning`."""
        return self._readings * self._reading

    def around(self, advance: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return `advance`, timed."""

        def timed(observer: Any) -> Any:
            real_step, real_episode = observer.on_step, observer.on_episode_end
            observer.on_step = self._timed_call(real_step)
            observer.on_episode_end = self._timed_call(real_episode)
            self._observing, begin = 0.0, time.thread_time()
            stats = advance(observer)
            self.learning += time.thread_time() - begin - self._observing
            observer.on_step, observer.on_episode_end = real_step, real_episode
            return stats

        return timed

    def _timed_call(self, method: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            begin = time.thread_time()
            method(*arguments)
            self._observing += time.thread_time() - begin
            self._readings += 1

        return timed


if __name__ == "__main__":
    print(json.dumps(_trial(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
