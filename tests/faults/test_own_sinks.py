"""A sink of somebody's own, in a whole training: each value once, whatever happens to the process that delivers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rltrack import TrainingLoop
from rltrack.console.deliveries import delivery_lines, delivery_state
from rltrack.errors import ConfigurationError
from rltrack.files import lock_holder
from rltrack.processes import python_command
from rltrack.runs import Root
from rltrack.tracking.bookmark import is_delivered, read_bookmark
from rltrack.tracking.pages import lean_environment, mlflow_command, tensorboard_command
from tests.support.agents import TINY, ScriptedAgent
from tests.support.servers import expected_metrics

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class KillsTheShipper:
    """Once something is delivered, kills the process that delivers; training goes on."""

    def __init__(self, name):
        self.run = Root().directory(name)
        self.killed = 0

    def on_iteration_end(self, progress, iteration_info):
        if self.killed or progress.env_steps < 100:
            return
        deadline = time.monotonic() + 60
        while not list((self.run.path / "parquet").glob("part-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(lock_holder(self.run.shipper_lock), signal.SIGKILL)
        self.killed += 1


@pytest.mark.slow
def test_a_training_delivers_to_it_and_a_kill_doubles_nothing(monkeypatch, delivery, forked):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(EXAMPLES)
    kills = KillsTheShipper("own-sink")
    loop = TrainingLoop(
        ScriptedAgent(), TINY, total_timesteps=3000, name="own-sink", hooks=[kills], sinks=["parquet_sink:ParquetSink"]
    )
    loop.run()
    assert kills.killed == 1
    assert loop.wait_for_tracking(60)
    run = Root().find("own-sink")
    table = pq.read_table(run.path / "parquet").to_pydict()
    got = sorted(zip(table["key"], table["step"], [int(t * 1000) for t in table["time"]], table["value"], strict=True))
    assert got == sorted((key, *row) for key, rows in expected_metrics(run).items() for row in rows)
    assert not (run.root / "mlflow.db").exists(), "MLflow is not among its sinks"
    assert list(read_bookmark(run).sinks) == ["parquet_sink:ParquetSink"]
    assert next(delivery_lines(delivery_state(run))) == "MLflow: not among the run's tracking.sinks"


@pytest.mark.slow
def test_one_that_does_not_work_stops_no_other(monkeypatch, tmp_path, delivery):
    (tmp_path / "odd_sinks.py").write_text("class NoSink: pass\n\ndef f(): pass\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(tmp_path)
    sinks = ["odd_sinks:NoSink", "tensorboard", "odd_sinks:nothing"]
    loop = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=200, name="odd", sinks=sinks)
    loop.run()
    assert not loop.wait_for_tracking(60)
    run = Root().find("odd")
    deadline = time.monotonic() + 60
    while run.is_shipped() and time.monotonic() < deadline:
        time.sleep(0.05)
    bookmark = read_bookmark(run)
    assert bookmark.tensorboard.finished_at == run.journal_file.stat().st_size
    assert not is_delivered(run)
    assert "no subclass of rltrack.tracking.sinks.base.Sink" in bookmark.of("odd_sinks:NoSink").problem.message
    assert "cannot be imported: AttributeError" in bookmark.of("odd_sinks:nothing").problem.message


@pytest.mark.parametrize(
    ("sinks", "words"),
    [
        (["tensorbord"], "There is no sink 'tensorbord'. Did you mean 'tensorboard'"),
        (["no_such_module:Sink"], "there is no module no_such_module"),
        (["os.path/../x:Sink"], "names no sink"),
        (["mlflow", "mlflow"], "a sink is named twice"),
    ],
)
def test_one_that_cannot_be_there_is_refused_before_anything_starts(sinks, words):
    with pytest.raises(ConfigurationError, match=words.replace(".", r"\.").replace("/", r"\/")):
        TrainingLoop(ScriptedAgent(), TINY, total_timesteps=200, name="refused", sinks=sinks).run()
    assert not Root().exists("refused")


@pytest.mark.slow
def test_no_file_of_the_current_folder_takes_the_place_of_a_package(monkeypatch, tmp_path, delivery):
    """A user's own sink there is found all the same, by a command and by the process that delivers."""
    for name in ("mlflow", "code", "tensorboard"):
        (tmp_path / f"{name}.py").write_text(
            "open('executed', 'w').close()\nraise RuntimeError('a file of the user')\n"
        )
    (tmp_path / "own_sinks.py").write_text(
        "from rltrack.tracking.sinks.base import Sink\n\n\nclass Own(Sink):\n    def open(self, report): pass\n\n"
        "    def write(self, points): return []\n"
    )
    sinks = "tracking.sinks=[mlflow, tensorboard, 'own_sinks:Own']"
    command = python_command("rltrack", "train", "--algo", "ppo", "--env", "CartPole-v1", "--timesteps", "32", "--name", "beside",
                             "--set", "agent.hyperparameters={n_steps: 32, batch_size: 32}", "--set", sinks)  # fmt: skip
    command.remove("-P")  # as a person types it
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert is_delivered(Root().find("beside")), Root().find("beside").shipper_log.read_text()
    for page in (mlflow_command("sqlite://", Root(), 1), tensorboard_command(Root(), 1)):
        program = [*page[: page.index("-m") + 2], "--help"]
        assert subprocess.run(program, cwd=tmp_path, env=lean_environment(), capture_output=True).returncode == 0
    (tmp_path / "app.py").write_text(
        "open('executed', 'w').close()\n"
    )  # MLflow's server starts uvicorn in the same way
    subprocess.run(
        [sys.executable, "-m", "uvicorn", "app:app"], cwd=tmp_path, env=lean_environment(), capture_output=True
    )
    assert not (tmp_path / "executed").exists()
