"""In a notebook: progress is shown, the stop button stops at a boundary with a version, and no thread is left behind."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("ipykernel")
client_module = pytest.importorskip("jupyter_client")

TRAIN = """
import threading, warnings
from stable_baselines3 import PPO
from rltrack import TrainingLoop
before = set(threading.enumerate())
model = PPO("MlpPolicy", "CartPole-v1", n_steps=256, batch_size=64, seed=0)
loop = TrainingLoop(model, total_timesteps=TOTAL, eval_freq=1024, eval_episodes=3, name="NAME", resume=True)
statistics = loop.run()
print("ENDED", statistics.state.value, "|", statistics.reason)
left = [thread for thread in threading.enumerate() if thread not in before]
for thread in left:
    thread.join(5)  # one that refreshes the display ends a moment later
print("LEFT", [thread.name for thread in left if thread.is_alive()])
"""


@pytest.fixture
def kernel(own_root):
    """A real kernel, as a notebook has."""
    manager = client_module.KernelManager(
        kernel_cmd=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    )
    manager.start_kernel(env={**os.environ, "RLTRACK_ROOT": str(own_root)})
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def execute(client, code, *, on_start=None):
    """Run a cell; return what it wrote to standard output and error."""
    if on_start is not None:
        threading.Thread(target=on_start, daemon=True).start()
    out = {"stdout": "", "stderr": "", "error": "", "shown": []}

    def hear(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            out[content["name"]] += content["text"]
        elif message["msg_type"] in ("display_data", "update_display_data"):
            out["shown"].append(content["data"]["text/plain"])
        elif message["msg_type"] == "error":
            out["error"] = f"{content['ename']}: {content['evalue']}"

    client.execute_interactive(code, timeout=120, output_hook=hear)
    return out


def cell(total, name):
    return TRAIN.replace("TOTAL", str(total)).replace("NAME", name)


@pytest.mark.slow
def test_the_stop_button_stops_with_a_version_and_the_next_cell_goes_on(kernel, own_root):
    manager, client = kernel
    journal = own_root / "runs" / "stopped" / "journal.jsonl"

    def press():
        while not (journal.exists() and '"metrics"' in journal.read_text()):
            time.sleep(0.1)
        manager.interrupt_kernel()

    out = execute(client, cell(10**6, "stopped"), on_start=press)
    assert out["error"] == ""
    assert "ENDED stopped" in out["stdout"]
    assert "LEFT []" in out["stdout"]
    assert "stopped" in out["shown"][-1]
    lines = [
        line for line in out["stderr"].splitlines() if not line.startswith("The hash seed of this process is random")
    ]
    assert lines == [], "no bar of a terminal, no other warnings"
    assert list((own_root / "runs" / "stopped" / "checkpoints").glob("v*"))
    assert execute(client, "print(1 + 1)")["stdout"] == "2\n", "the kernel lives, with its own handlers"
    begun = journal.read_text().count('"metrics"')

    def press_again():
        while journal.read_text().count('"metrics"') <= begun:
            time.sleep(0.1)
        manager.interrupt_kernel()

    out = execute(client, cell(10**6, "stopped"), on_start=press_again)
    assert "ENDED stopped" in out["stdout"], out
