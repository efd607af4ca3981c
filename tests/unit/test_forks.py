"""Commands that tests run in forks end as those of a real interpreter, with the same output and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAMS = {
    "arguments": "import sys; print(sys.argv, file=sys.stderr); print(sys.argv[1:])",
    "exit code": "raise SystemExit(3)",
    "exit with words": "raise SystemExit('no')",
    "input": "import sys; print(sys.stdin.read().upper())",
    "environment": "import os; print(os.getcwd(), os.environ['OF_THE_TEST'], sorted(os.environ))",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "interrupted": "raise KeyboardInterrupt",
    "at exit": "import atexit, threading; atexit.register(print, 'end'); threading.Timer(0.1, print, ['thread']).start()",
    "threads": "import torch; print(torch.get_num_threads())",
    "main": "import sys; print(sys.modules['__main__'].__dict__ is globals(), __name__, sys.path[0] == '')",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_fork_behaves_as_a_process(name, forks, tmp_path):
    environment = {**os.environ, "OF_THE_TEST": "here", "OMP_NUM_THREADS": "2"}
    environment.pop("LC_CTYPE", None)
    outcomes = [
        subprocess.run(
            [python, "-c", PROGRAMS[name], "one", "two words"],
            env=environment, cwd=tmp_path, input="given", capture_output=True, text=True,
        )
        for python in (sys.executable, forks.python)
    ]  # fmt: skip
    real, fork = ((done.returncode, done.stdout, done.stderr.splitlines()[-1:]) for done in outcomes)
    assert fork == real


@pytest.mark.slow
def test_forks_share_no_random_state(forks):
    code = "import random, numpy, torch\nfor drawn in random.random(), numpy.random.rand(), float(torch.rand(1)): print(drawn)"
    drawn = [
        subprocess.run([forks.python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert not set(drawn[0]) & set(drawn[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_fork_hears_signals(number, forks):
    # in short steps: Python notices a signal that comes just before a long sleep only after it
    code = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.05)"
    process = subprocess.Popen([forks.python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(number)
    assert process.wait(60) == -number
    assert process.stdout.read() == "", "what it held is closed, so it has ended"
