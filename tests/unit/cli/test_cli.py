"""The command line: what a person types, what comes out, and that bad input leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rltrack.cli import run_command
from rltrack.cli.shared import app
from rltrack.runs import Root
from rltrack.tracking.bookmark import read_bookmark
from rltrack.tracking.delivery import NoDelivery
from rltrack.tracking.pages import served_page

pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A root with two small runs, and their names."""
    root = tmp_path_factory.mktemp("cli") / "mlruns"
    config = root.parent / "small.yaml"
    config.write_text(
        "agent: {algorithm: PPO, hyperparameters: {n_steps: 32, batch_size: 32, n_epochs: 2}}\n"
        "environment: {id: CartPole-v1, n_envs: 2}\n"
        "training: {total_timesteps: 256, eval_freq: 128}\n"
        "evaluation: {episodes: 2}\n"
    )
    patch = pytest.MonkeyPatch()
    patch.setattr("rltrack.tracking.delivery.Delivery", lambda run: NoDelivery())
    patch.setattr("rltrack.tracking.delivery.deliver_left_behind", lambda root: 0)
    for seed in (0, 1):
        assert (
            run_command(["train", str(config), "--root", str(root), "--set", f"seed={seed}", "--name", f"run{seed}"])
            == 0
        )
    patch.undo()
    return root, config


@pytest.mark.slow
def test_runs_show_eval_export_plot(trained, capsys, tmp_path):
    root, _ = trained
    assert run_command(["--root", str(root), "runs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"], row["env_steps"]) for row in rows] == [
        ("run0", "completed", 256),
        ("run1", "completed", 256),
    ]
    assert run_command(["runs", "--root", str(root)]) == 0
    assert "run0" in capsys.readouterr().out

    assert run_command(["show", "run0", "--json", f"--root={root}"]) == 0
    details = json.loads(capsys.readouterr().out)
    assert details["attempts"] == 1
    assert [item["step"] for item in details["evaluations"]] == [128, 256]
    assert run_command(["show", "run0", "--root", str(root)]) == 0
    assert "Versions" in capsys.readouterr().out

    for selector in ("run0", "run0@last", "run0@256"):
        assert run_command(["eval", selector, "--episodes", "3", "--json", "--root", str(root)]) == 0
        assert len(json.loads(capsys.readouterr().out)["returns"]) == 3

    export = ["export", "run0", "--format", "json", "--output", str(tmp_path / "e.json"), "--root", str(root)]
    assert run_command(export) == 0
    capsys.readouterr()
    assert run_command(export) == 2
    assert "e.json exists" in capsys.readouterr().err
    assert run_command([*export, "--force"]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["metrics"]["eval/mean_reward"]["step"] == [128, 256]
    assert run_command(["plot", "run0", "--output", str(tmp_path / "plots"), "--root", str(root)]) == 0
    assert (tmp_path / "plots" / "learning_curve.png").stat().st_size > 5000


@pytest.mark.slow
def test_training_a_finished_run_again_says_so(trained, capsys):
    root, config = trained
    assert run_command(["train", str(config), "--set", "seed=0", "--name", "run0", "--root", str(root)]) == 0
    assert "finished before" in capsys.readouterr().out
    assert run_command(["resume", "run0", "--root", str(root)]) == 0
    assert run_command(["train", str(config), "--set", "seed=5", "--name", "run0", "--root", str(root)]) == 2
    assert "seed: 0 → 5" in capsys.readouterr().err


def test_config_prints_what_is_resolved_and_the_schema(trained, capsys):
    _, config = trained
    assert run_command(["config", str(config), "--set", "agent.threads=2"]) == 0
    assert "threads: 2" in capsys.readouterr().out
    assert run_command(["config", "--schema"]) == 0
    assert "agent" in json.loads(capsys.readouterr().out)["properties"]
    of_run = ["--root", str(trained[0]), "config", "--from-run", "run0"]
    assert run_command([*of_run, "--timesteps", "64", "--seed", "7", "--env", "Acrobot-v1"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("total_timesteps: 64", "seed: 7", "id: Acrobot-v1"))
    assert run_command([*of_run, "missing.yaml"]) == 2
    assert "missing.yaml and the run run0 are given" in capsys.readouterr().err


BASE = ["train", "--algo", "ppo", "--env", "CartPole-v1", "--timesteps", "64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Nothing to train"),
        (["train", "--algo", "poo", "--env", "CartPole-v1"], "Did you mean 'PPO'"),
        (["train", "--algo", "ppo", "--env", "CartPol-v1"], "Did you mean 'CartPole-v1'"),
        (
            ["train", "--algo", "sac", "--env", "CartPole-v1"],
            "SAC supports the action spaces Box, but CartPole-v1 has Discrete(2)",
        ),
        ([*BASE, "--set", "agent.hyperparameters.n_step=5"], "Did you mean 'n_steps'"),
        ([*BASE, "--set", "agent.hyperparameters.learning_rate={cosine: 1}"], "Known schedules: linear"),
        ([*BASE, "--set", "agent.hyperparameters.gamma=hello"], "gamma' is 'hello', a text; PPO wants float"),
        ([*BASE, "--set", "agent.policy=MlpPolicyy"], "refuses these settings"),
        ([*BASE, "--set", "agent.device=gpu7"], "Unknown agent.device"),
        ([*BASE, "--set", "training.strategy=episodic"], "needs total_episodes"),
        ([*BASE, "--set", "training.eval_frq=5"], "Did you mean 'eval_freq'"),
        ([*BASE, "--timesteps", "-5"], "greater than or equal to 1"),
        ([*BASE, "--timesteps", "5e3"], "timesteps"),
        ([*BASE, "--name", "../escape"], "not allowed"),
        ([*BASE, "--name", "a/b"], "not allowed"),
        ([*BASE, "--set", "environment.wrappers=[nowhere.Wrapper]"], "there is no module 'nowhere'"),
        ([*BASE, "--set", "environment.wrappers=[gymnasium.wrappers.FlattenObs]"], "Did you mean"),
        ([*BASE, "--set", "environment.kwargs={nope: 1}"], "does not take"),
        (["train", "--algo", "ppo", "--env", "nopackage:X-v0"], "nopackage"),
        (["train", "missing.yaml"], "No configuration file"),
        (["train", "--algo", "ppo"], "Nothing to train"),
        (["show", "nothing"], "No run 'nothing'"),
        (["resume", "nothing"], "No run 'nothing'"),
        (["eval", "nothing"], "No run 'nothing'"),
        (["eval", "any", "--seed", "-1"], "greater than or equal to 0"),
        (["watch", "any", "--seed", "-1"], "greater than or equal to 0"),
        (["eval", "any", "--target", "nan"], "nan is not a finite number"),
        (["prune", "--below", "nan"], "nan is not a finite number"),
        (["prune", "--older-than", "nand"], "'nand' is not an age"),
        (["compare", "one", "two", "--threshold", "inf"], "inf is not a finite number"),
        (["ui", "--port", "7007", "--tensorboard-port", "7007"], "--mlflow-port and --tensorboard-port are both 7007"),
        (["ui", "--tensorboard-port", "70000"], "Port 70000 does not exist"),
        (["frobnicate"], "frobnicate"),
        (["train", "--wrong"], "--wrong"),
    ],
)
def test_bad_input_is_one_message_and_leaves_no_run(arguments, message, own_root, capsys):
    code = run_command(arguments)
    shown = capsys.readouterr().err
    assert code in (1, 2)
    assert message in " ".join(shown.replace("│", " ").split())
    assert "Traceback" not in shown
    assert not any(path.is_dir() for path in (own_root / "runs").glob("*"))


def test_missing_extras_name_the_command(own_root, capsys, monkeypatch):
    import importlib

    real = importlib.import_module

    def without_contrib(name, *more):
        if name.startswith("sb3_contrib"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without_contrib)
    assert run_command(["train", "--algo", "tqc", "--env", "Pendulum-v1"]) == 2
    assert "pip install 'rltrack[contrib]'" in capsys.readouterr().err
    assert not any((own_root / "runs").glob("*"))


def test_without_prefect_and_mlflows_pages_one_line_names_the_extra(own_root, capsys, monkeypatch):
    """Forgets that they are installed, as where only `rltrack` is."""
    import importlib.metadata
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "prefect" else real(name, *more)
    )
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **asked: iter(()))
    for name in [name for name in sys.modules if name.partition(".")[0] == "rltrack" and ".flows" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["rltrack"], "flows", raising=False)
    for command in (["flow", "train", "--algo", "ppo", "--env", "CartPole-v1"], ["up"], ["deploy"]):
        assert run_command(command) == 2
        assert capsys.readouterr().err.endswith("pip install 'rltrack[flow]'.\n")
    assert run_command(["ui", "--mlflow-port", "0", "--tensorboard-port", "0"]) == 2
    assert "pip install 'rltrack[ui]'" in capsys.readouterr().err


def test_alone_it_shows_the_first_steps_and_the_help_has_one_line_for_each_command(capsys):
    assert run_command([]) == 0
    steps = capsys.readouterr().out
    assert "rltrack --help" in steps
    commands = {command.name or command.callback.__name__: command for command in app.registered_commands}
    shown = re.findall(r"^  rltrack (\S+)", steps, re.MULTILINE)
    assert shown
    assert set(shown) <= commands.keys()
    for name, command in commands.items():
        summary = command.callback.__doc__.partition("\n\n")[0]
        assert "\n" not in summary.strip(), name
        assert len(summary.strip()) <= 57, f"{name}: a terminal of 80 columns shows it on two lines"
        assert command.hidden or isinstance(command.rich_help_panel, str), name


def test_missing_environment_packages_name_the_extra(own_root, capsys):
    try:
        import Box2D  # noqa: F401

        pytest.skip("Box2D is installed here")
    except ImportError:
        pass
    assert run_command(["train", "--algo", "ppo", "--env", "LunarLander-v3"]) == 2
    assert "pip install 'rltrack[box2d]'" in capsys.readouterr().err


def test_wrong_versions_and_formats(trained, capsys):
    root, _ = trained
    assert run_command(["eval", "run0@v99", "--root", str(root)]) == 1
    assert "committed: v" in capsys.readouterr().err
    assert run_command(["eval", "run0@newest", "--root", str(root)]) == 1
    assert run_command(["eval", "run0", "--episodes", "0", "--root", str(root)]) == 2
    assert run_command(["export", "run0", "--format", "xml", "--root", str(root)]) == 2


def test_a_root_that_cannot_be_written(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert run_command([*BASE, "--root", str(file)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        assert run_command([*BASE, "--root", str(locked)]) == 1


@pytest.mark.parametrize(
    ("command", "lists"),
    [
        ("show", "runs"),
        ("watch", "runs"),
        ("compare", "runs"),
        ("export", "runs"),
        ("serve", "models"),
        ("rollback", "models"),
    ],
)
def test_a_missing_argument_names_the_command_that_lists_the_choices(command, lists, capsys):
    assert run_command([command]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(rf"Missing argument '\S+'\. .*`rltrack {lists}` lists them", said)


def test_ctrl_c_is_one_line(own_root, capsys, monkeypatch):
    monkeypatch.setattr(Root, "names", lambda self: signal.raise_signal(signal.SIGINT))
    assert run_command(["runs"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_held_run_is_refused(trained, capsys):
    from rltrack.runs import Root

    root, config = trained
    with Root(root).find("run1").lock():
        assert run_command(["train", str(config), "--set", "seed=1", "--name", "run1", "--root", str(root)]) == 1
    assert f"process {os.getpid()}" in capsys.readouterr().err


def test_doctor(capsys, monkeypatch):
    assert run_command(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "stable-baselines3" in out
    assert "All is well" in out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run_command(["doctor"]) == 1
    assert "127.0.0.1:9 does not answer" in capsys.readouterr().out


def test_help_loads_neither_torch_nor_mlflow():
    code = (
        "import sys\nfrom rltrack.cli import run_command\nassert run_command(['--help']) == 0\n"
        "found = {'torch', 'mlflow', 'prefect', 'numpy', 'stable_baselines3', 'pydantic'} & set(sys.modules)\n"
        "assert not found, found"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_python_m(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "rltrack", "runs", "--root", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0
    assert "No runs under" in result.stdout


@pytest.mark.slow
def test_checkpoints_are_listed_verified_pinned_and_pruned(own_root, capsys):
    run_command(["train", "--algo", "ppo", "--env", "CartPole-v1", "--timesteps", "600", "--name", "kept",
                 "--set", "agent.hyperparameters.n_steps=100", "--set", "training.checkpoint_freq=100",
                 "--set", "agent.hyperparameters.batch_size=50", "--set", "training.eval_freq=300",
                 "--set", "evaluation.episodes=2", "--set", "checkpoints.keep_last=4"])  # fmt: skip
    capsys.readouterr()
    assert run_command(["checkpoints", "kept", "--verify", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["env_steps"] for row in rows if row["resumable"]] == [300, 400, 500, 600]
    assert {row["environments"] for row in rows} == {"capture"}
    run = Root(own_root).find("kept")
    config = run.read_config()
    run.write_config({**config, "checkpoints": {**config["checkpoints"], "keep_last": 1}})
    assert run_command(["checkpoints", "kept", "--pin", "400", "--prune"]) == 0
    out = capsys.readouterr().out
    assert "pinned" in out
    store = own_root / "runs" / "kept" / "checkpoints"
    run_command(["checkpoints", "kept", "--json"])
    left = json.loads(capsys.readouterr().out)
    assert [row["env_steps"] for row in left if row["resumable"]] == [400, 600]
    pinned = run.store().pinned()
    damaged = store / f"v{int(left[-1]['name'][1:]):06d}" / "policy.json"
    damaged.write_text("{}")
    assert run_command(["checkpoints", "kept", "--verify"]) == 1
    out = capsys.readouterr().out
    assert "damaged" in out
    assert "policy.json does not match" in " ".join(out.split())
    assert run_command(["checkpoints", "kept", "--pin", "last", "--pin", "v99"]) == 1
    assert "committed:" in capsys.readouterr().err
    assert run.store().pinned() == pinned


@pytest.mark.slow
def test_show_says_how_a_resume_comes_out(own_root, capsys):
    run_command(["train", "--algo", "a2c", "--env", "CartPole-v1", "--timesteps", "100", "--name", "shown"])
    capsys.readouterr()
    run_command(["show", "shown"])
    assert "resume: exact: the environments' state is in each version" in capsys.readouterr().out
    run_command(["show", "shown", "--json"])
    details = json.loads(capsys.readouterr().out)
    assert details["exact"] is True
    assert details["environments"]["probed"] is True


@pytest.mark.slow
def test_verify_resume(own_root, capsys, forked):
    settings = ["--set", "agent.hyperparameters.n_steps=32", "--set", "agent.hyperparameters.batch_size=32"]
    assert run_command(["verify-resume", "--algo", "ppo", "--env", "CartPole-v1", "--kills", "1", *settings]) == 0
    assert "exact: 500 env steps, 1 kills" in capsys.readouterr().out


@pytest.mark.slow
def test_verify_resume_names_what_differs(own_root, capsys, forked):
    pytest.importorskip("Box2D")
    settings = ["--set", "agent.hyperparameters.n_steps=32", "--set", "agent.hyperparameters.batch_size=32"]
    code = run_command(["verify-resume", "--algo", "ppo", "--env", "BipedalWalker-v3", "--kills", "1", *settings])
    out = capsys.readouterr().out
    assert code == 1
    assert "NOT exact" in out
    assert "first difference: " in out
    assert "not exactly: the environments begin a new episode" in out


def test_journal_prints_what_was_recorded(trained, capsys):
    root, _ = trained
    assert run_command(["--root", str(root), "journal", "run0", "--kind", "evaluation", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["step"] for record in records] == [128, 256]
    assert run_command(["--root", str(root), "journal", "run0", "--follow"]) == 0, "it ends with a run that has ended"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(Root(root).find("run0").journal_file.read_bytes().splitlines())
    assert any("evaluation    mean" in line for line in lines)
    assert any("end           state completed" in line for line in lines)
    assert run_command(["--root", str(root), "journal", "run0", "--kind", "evaluations"]) == 2
    assert "Did you mean 'evaluation'?" in capsys.readouterr().err


@pytest.mark.slow
def test_sync_delivers_and_relocate_repairs_what_was_moved(trained, capsys, tmp_path, forked):
    import shutil

    root = tmp_path / "first"
    shutil.copytree(trained[0], root)
    assert run_command(["--root", str(root), "sync"]) == 2
    assert "rltrack sync --all" in capsys.readouterr().err
    assert run_command(["--root", str(root), "sync", "--all"]) == 0
    assert "run0: delivered" in capsys.readouterr().out
    assert run_command(["--root", str(root), "sync", "--all"]) == 0
    assert "Everything that can be delivered is delivered" in capsys.readouterr().out
    assert run_command(["--root", str(root), "show", "run0"]) == 0
    assert "MLflow: run " in capsys.readouterr().out
    assert run_command(["--root", str(root), "relocate"]) == 0
    assert "Nothing to repair" in capsys.readouterr().out

    moved = tmp_path / "second place"
    root.rename(moved)
    assert run_command(["--root", str(moved), "sync", "run0", "--again"]) == 1
    assert "rltrack relocate" in capsys.readouterr().out
    assert run_command(["--root", str(moved), "relocate"]) == 0
    assert "entries were repaired" in capsys.readouterr().out
    assert run_command(["--root", str(moved), "sync", "run0"]) == 0
    state = read_bookmark(Root(moved).find("run1")).mlflow.state
    assert state["tracking_uri"] == f"sqlite:///{moved / 'mlflow.db'}"
    from mlflow.tracking import MlflowClient

    found = MlflowClient(state["tracking_uri"]).get_run(state["run_id"])
    assert "second%20place" in found.info.artifact_uri
    assert found.data.tags["rltrack.directory"] == str(moved / "runs" / "run1")
    assert MlflowClient(state["tracking_uri"]).download_artifacts(state["run_id"], "config.yaml")


@pytest.mark.slow
def test_ui_serves_both_pages_and_ends_both(trained, tmp_path, forked):
    import signal
    import time
    import urllib.request

    command = [
        sys.executable,
        "-m",
        "rltrack",
        "--root",
        str(trained[0]),
        "ui",
        "--port",
        "0",
        "--tensorboard-port",
        "0",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    addresses = {}
    for line in process.stdout:
        if "http://127.0.0.1" in line:
            name, address = line.split()
            addresses[name] = address
        if "Ctrl-C" in line:
            break
    assert addresses.keys() == {"MLflow", "runs", "TensorBoard"}
    assert addresses["runs"].endswith("/runs?viewStateShareKey=rltrack")
    assert served_page(Root(trained[0])) == addresses["MLflow"]
    for address in addresses.values():
        assert urllib.request.urlopen(address, timeout=20).status == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 0
    assert served_page(Root(trained[0])) is None
    time.sleep(0.5)
    for address in addresses.values():
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(address, timeout=2)


def test_ui_names_a_port_that_is_taken(trained, capsys):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert run_command(["--root", str(trained[0]), "ui", "--tensorboard-port", str(other.getsockname()[1])]) == 2
    assert "--tensorboard-port" in capsys.readouterr().err


@pytest.mark.slow
def test_a_film_of_the_best_policy(trained, tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    from rltrack.training.film import film

    frames = film(Root(trained[0]).find("run0"), tmp_path / "best.mp4", tmp_path / "best.gif")
    assert 5 < frames <= 500
    assert (tmp_path / "best.mp4").stat().st_size > 1000
    assert (tmp_path / "best.gif").read_bytes()[:4] == b"GIF8"


def test_what_stands_in_brackets_is_shown(own_root, capsys):
    """rich would take it for its markup."""
    from rltrack import TrainingLoop
    from tests.support.agents import TINY, ScriptedAgent

    class Says:
        def on_episode_end(self, progress, episode_info):
            progress.request_stop("good enough [see the wiki]")

    loop = TrainingLoop(ScriptedAgent(), TINY, total_timesteps=100, name="brackets")
    loop.add_hook(Says())
    loop.run()
    assert run_command(["show", "brackets"]) == 0
    assert "good enough [see the wiki]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "is_filmed"), [("off", False), pytest.param("on", True, marks=pytest.mark.nightly)]
)
@pytest.mark.slow
def test_a_machine_can_do_without_films(setting, is_filmed, own_root, monkeypatch):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    from rltrack.tracking.shipper import ship_run
    from rltrack.training.trainer import Trainer

    monkeypatch.setenv("RLTRACK_VIDEO", setting)
    config = {
        "name": "filmed",
        "agent": {"algorithm": "PPO", "hyperparameters": {"n_steps": 32, "batch_size": 32}, "device": "cpu"},
        "environment": {"id": "CartPole-v1"},
        "training": {"total_timesteps": 32, "eval_freq": 32},
        "evaluation": {"episodes": 2},
    }
    Trainer(config, root=own_root).train()
    run = Root(own_root).find("filmed")
    assert ship_run(run, patience=0.0) == 0
    assert (run.exports / "best.mp4").exists() is is_filmed


@pytest.mark.slow
def test_what_the_outputs_encoding_lacks_is_replaced(trained):
    other = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    other.pop("LC_CTYPE", None)
    for command in (["show", "run0"], ["checkpoints", "run0"]):
        done = subprocess.run(
            [sys.executable, "-m", "rltrack", "--root", str(trained[0]), *command], env=other, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
