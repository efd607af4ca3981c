"""The Prefect server of a root: shared, and gone with its last user, however that one ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from rltrack.errors import ConfigurationError, RltrackError
from rltrack.files import take_lock
from rltrack.flows import stack
from rltrack.flows.client import prefect_server
from rltrack.flows.server import ServerFolder, hold_server
from rltrack.flows.stack import down
from rltrack.processes import lives
from rltrack.runs import Root
from tests.flows.test_train_flow import config, outcome
from tests.support.servers import free_port

pytestmark = pytest.mark.slow
TRAINING = {"total_timesteps": 6_000, "eval_freq": 3_000, "checkpoint_freq": 500}


def wait_until_gone(folder: ServerFolder, pid: int) -> None:
    deadline = time.monotonic() + 15
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives(pid)
    assert folder.address() is None


def test_a_server_is_shared_and_ends_with_its_last_user(tmp_path):
    folder = ServerFolder(tmp_path)
    with hold_server(tmp_path) as one:
        pid = folder.pid()
        with hold_server(tmp_path) as other:
            assert (other, folder.pid()) == (one, pid)
        time.sleep(1)
        assert folder.address() == one
    wait_until_gone(folder, pid)
    assert "Traceback" not in folder.log_file.read_text()


def test_of_two_that_start_the_stack_at_the_same_time_the_second_finds_it_up(tmp_path, monkeypatch):
    root, folder, locks, said = Root(tmp_path), stack.StackFolder(tmp_path), [], []

    def supervisor(command, log):
        locks.append(take_lock(folder.lock))
        threading.Timer(0.5, folder.state_file.write_text, ['{"ready": true}']).start()
        return SimpleNamespace(poll=lambda: None)

    monkeypatch.setattr(stack, "spawn", supervisor)
    options = stack.Options(ports=dict.fromkeys(stack.PORTS, 0))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: stack.up(root, options, said.append), range(2)))
    assert (len(locks), said) == (1, ["The stack is up already."])
    other = stack.Options(ports={**options.ports, "mlflow": 5999})
    with pytest.raises(ConfigurationError, match=r"is up with 1 worker.*mlflow at port \d+.*rltrack down"):
        stack.up(root, other, said.append, chosen_ports=frozenset({"mlflow"}))
    os.close(locks[0])


def test_down_ends_a_server_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("rltrack.flows.server.HUNG_SECONDS", 0.5)
    folder = ServerFolder(tmp_path)
    with hold_server(tmp_path):
        assert not down(Root(tmp_path), print), "one that answers is left to its users"
        pid = folder.pid()
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr("rltrack.flows.server.START_SECONDS", 2.0)
        with (
            pytest.raises(RltrackError, match=rf"process {pid}\) runs and does not answer.* `rltrack down`"),
            hold_server(tmp_path),
        ):
            pass
        address = folder.address_file.read_text()
        folder.address_file.unlink()
        monkeypatch.setattr("rltrack.flows.server.START_SECONDS", 600.0)
        assert not down(Root(tmp_path), print), "one without an address is starting"
        folder.address_file.write_text(address)
        assert down(Root(tmp_path), print)
    wait_until_gone(folder, pid)


def test_a_server_ends_when_its_root_is_deleted(tmp_path):
    with hold_server(tmp_path / "root"):
        pid = ServerFolder(tmp_path / "root").pid()
        shutil.rmtree(tmp_path / "root")
        wait_until_gone(ServerFolder(tmp_path / "root"), pid)


def test_no_server_answers_at_the_users_address(tmp_path, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = f"http://127.0.0.1:{free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: address}),
        pytest.raises(RltrackError, match="does not answer"),
        prefect_server(tmp_path),
    ):
        pass


def command(root, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config("ended", **TRAINING).to_yaml())
    return [sys.executable, "-m", "rltrack", "--root", str(root), "flow", "train", str(path)]


@pytest.mark.nightly  # each time: a signal in test_train_flow.py, and the ends of servers above
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_orphan_and_no_hang_and_it_goes_on(own_root, tmp_path, number):
    """SIGKILL to the flow's process, or Ctrl-C to its whole group: the server goes, the run goes on to the same end."""
    environment = {**os.environ}
    environment.pop("PREFECT_API_URL", None)
    process = subprocess.Popen(
        command(own_root, tmp_path), env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    versions = own_root / "runs" / "ended" / "checkpoints"
    deadline = time.monotonic() + 90
    while not any(versions.glob("v*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    server = ServerFolder(own_root).pid()
    os.killpg(process.pid, number)
    process.communicate(timeout=90)
    assert process.returncode == (-number if number == signal.SIGKILL else 3)
    assert Root().find("ended").status().state == ("interrupted" if number == signal.SIGKILL else "stopped")
    wait_until_gone(ServerFolder(own_root), server)
    from rltrack.training.trainer import Trainer
    from rltrack.training.verify import first_difference

    if number == signal.SIGKILL:
        again = subprocess.run(
            command(own_root, tmp_path), env=environment, capture_output=True, text=True, timeout=120
        )
        assert again.returncode == 0, again.stderr
        assert "completed" in again.stdout
    else:  # a flow and a plain training resume the same
        assert Trainer(config("ended", **TRAINING)).train().state.value == "completed"
    undisturbed = Trainer(config("whole", **TRAINING))
    undisturbed.train()
    assert first_difference(outcome("whole"), outcome("ended"))[1] is None
