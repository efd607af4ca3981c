"""How long the commands and MLflow's page take with many runs in one store, for growing numbers of them.

One trial of a sweep is trained; the others are its copies under other names, ids and values, each delivered to MLflow as any
run. It times whole commands, and MLflow's responses to the requests of its page.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrack.benchmarks.zoo import timed
from rltrack.journal import read_journal
from rltrack.journal.lines import encode_record, numbered_line
from rltrack.loopback import HOST, free_port
from rltrack.processes import python_command, spawn
from rltrack.runs import Root, RunDirectory
from rltrack.studies.search import Search
from rltrack.studies.space import SweepSection
from rltrack.studies.trials import run_trial, train_here
from rltrack.tracking.pages import lean_environment, mlflow_command, wait_until_up
from rltrack.tracking.shipper import prepare_process, ship_run
from rltrack.tracking.sinks.embedded import ensure_database

SWEEP = "many"
COMPARED = 100
BASE: dict[str, Any] = {
    "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1}, "device": "cpu"},
    "environment": {"id": "CartPole-v1"},
    "training": {"total_timesteps": 1024, "eval_freq": 256},
    "evaluation": {"episodes": 2},
    "tracking": {"video": False, "experiment": SWEEP},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One number of runs.

    Attributes:
        runs: How many there were.
        seconds: Wall time by what was done.
    """

    runs: int
    seconds: dict[str, float]


def measure_scale(folder: Path, counts: Sequence[int], notify: Callable[[str], None]) -> list[Row]:
    """Fill a root step by step, and time everything at each.

    Args:
        folder: Of the root; filled with the greatest number of runs.
        counts: Numbers of runs, ascending.
        notify: Called with each progress message.
    """
    prepare_process()
    root = Root(folder)
    section = SweepSection.model_validate(
        {
            "parameters": {"learning_rate": {"float": [1e-4, 1e-2], "log": True}},
            "trials": max(counts),
            "sampler": "random",
        }
    )
    search = Search(SWEEP, root).open(BASE, section)
    run_trial(search, 0, train_here(search, console=False))
    first = root.find(search.run_names(0)[0])
    ship_run(first)
    rows = []
    for count in counts:
        began, before = time.perf_counter(), len(root.names())
        for number in range(before, count):
            _copy(search, number, first)
        spent = time.perf_counter() - began
        notify(f"{count} runs: {count - before} made and delivered in {spent:.0f} s")
        rows.append(Row(count, {"delivery of a run": spent / max(count - before, 1), **_times(root, search, count)}))
        notify(json.dumps(rows[-1].seconds))
    return rows


def _copy(search: Search, number: int, first: RunDirectory) -> None:
    """Another trial, with the first one's journal under its own name, id and value of the learning rate."""
    _, values = search.begin(number)
    [config] = search.configs(number, values)
    run = search.root.create(config.name, "")
    run.write_config(config.to_mapping())
    shutil.copytree(first.path / "checkpoints", run.path / "checkpoints")
    learning_rate = values["agent.hyperparameters.learning_rate"]
    run.journal_file.write_bytes(_journal_of_another(first.journal_file, learning_rate))
    shutil.copy(first.destination_file, run.destination_file)
    ship_run(run, notify=lambda text: None)
    search.study.tell(number, 10.0 + number % 90, state=search.optuna.trial.TrialState.COMPLETE)


def _journal_of_another(journal: Path, learning_rate: float) -> bytes:
    lines: list[bytes] = []
    for record in read_journal(journal):
        if record["kind"] == "configuration":
            record["run_id"] = uuid.uuid4().hex
            for described in (record["identity"]["agent"], record["agent"]):
                described["hyperparameters"]["learning_rate"] = learning_rate
        lines.append(numbered_line(encode_record(record), len(lines) + 1))
    return b"".join(lines)


def _times(root: Root, search: Search, count: int) -> dict[str, float]:
    def command(*words: str) -> float:
        return timed(python_command("rltrack", "--root", str(root.path), *words))

    names = root.names()[:COMPARED]
    found = {
        "rltrack --help": command("--help"),
        "rltrack runs": command("runs"),
        f"rltrack compare ({len(names)} runs)": command(
            "compare", *names, "--no-log", "--output", str(root.path / "compared")
        ),
        "rltrack sweep --show": command("sweep", "--name", SWEEP, "--trials", str(count), "--show"),
        "rltrack prune (dry run)": command("prune", "--study", SWEEP, "--keep-best", "1"),
    }
    port = free_port()
    address = f"http://{HOST}:{port}"
    log = root.path / "mlflow.log"
    server = spawn(mlflow_command(ensure_database(root.path), root, port), log, lean_environment())
    try:
        wait_until_up("mlflow", address, server, log)
        experiments = _post(address, "experiments/search", {"max_results": 100})["experiments"]
        ids = [item["experiment_id"] for item in experiments if item["name"] == SWEEP]
        ask = {"experiment_ids": ids, "max_results": 100, "order_by": ["attributes.start_time DESC"]}
        page = _post(address, "runs/search", ask)
        began = time.perf_counter()
        _post(address, "runs/search", ask)
        found["MLflow: first page of runs"] = time.perf_counter() - began
        chosen = [item["info"]["run_id"] for item in page["runs"]]
        began = time.perf_counter()
        for run_id in chosen[:10]:
            with urllib.request.urlopen(
                f"{address}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=eval/mean_reward", timeout=60
            ) as answer:
                assert json.load(answer)["metrics"], "the run has such a curve"
        found["MLflow: a curve of 10 runs"] = time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()
    return found


def _post(address: str, what: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{what}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the table."""
    head = "| seconds | " + " | ".join(f"{row.runs:,} runs" for row in rows) + " |"
    lines = [head, "|---" + "|---:" * len(rows) + "|"]
    keys = list(dict.fromkeys(name.partition(" (")[0] for row in rows for name in row.seconds))
    for key in keys:
        cells = [next((value for name, value in row.seconds.items() if name.startswith(key)), None) for row in rows]
        lines.append(f"| {key} | " + " | ".join("–" if cell is None else f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(lines)
