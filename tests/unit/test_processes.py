"""Background processes, and servers on this machine's own address."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import pytest

from rltrack.errors import ConfigurationError
from rltrack.files import is_locked, take_lock
from rltrack.loopback import HOST, answers, free_port, last_words, wait_for
from rltrack.processes import end_session, holder_in_words, lives, spawn


def test_a_background_process_leads_its_own_session_and_writes_to_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import os, sys; print(os.environ['WORD'], os.getsid(0) == os.getpid(), flush=True); print('err', file=sys.stderr)"
    process = spawn([sys.executable, "-c", code], log, {**os.environ, "WORD": "hello"})
    assert process.wait(60) == 0
    assert last_words(log).split() == ["before", "hello", "True", "err"]
    with pytest.raises(OSError, match="nowhere"):
        spawn(["/nowhere/at/all"])


def forked(work):
    """Fork; the child works, says so, and stays until it is killed."""
    heard, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(told, str(work()).encode() or b"-")
            time.sleep(60)
        os._exit(0)
    os.close(told)
    with os.fdopen(heard, "rb", buffering=0) as stream:
        return pid, stream.read(100).decode()


def killed(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_the_holder_of_a_lock_forks_does_not_hold_it(tmp_path):
    """As an environment's helper process: it outlives a trainer that was killed, and the run can be resumed."""
    path = tmp_path / "lock"
    descriptor = take_lock(path)
    child, said = forked(lambda: os.close(descriptor))  # as code of the parent that runs on in the child
    try:
        assert said == "None"
        assert is_locked(path), "the parent holds it all the same"
        os.close(descriptor)
        again = take_lock(path)
        assert again is not None
        os.close(again)
    finally:
        killed(child)


def test_another_file_at_the_number_of_an_old_lock_stays_open_in_a_fork(tmp_path):
    os.close(descriptor := take_lock(tmp_path / "lock"))
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    assert other == descriptor, "the test is about the same number"
    child, said = forked(lambda: os.write(other, b"written"))
    killed(child)
    os.close(other)
    assert said == "7"
    assert (tmp_path / "other").read_bytes() == b"written"


def test_a_lock_that_a_dead_process_left_to_another_names_both(tmp_path):
    path = tmp_path / "lock"
    holder = spawn(["flock", str(path), "sleep", "60"])  # both have it open
    try:
        while not is_locked(path):
            time.sleep(0.02)
        gone = spawn(["true"])
        gone.wait()
        path.write_text(f"{gone.pid}\n")
        said = holder_in_words(path)
    finally:
        end_session(holder.pid)
    assert str(holder.pid) in said
    assert f"which process {gone.pid} started before it ended" in said


def test_a_port_that_is_taken_is_refused_and_a_server_is_waited_for(tmp_path):
    port = free_port()
    address = f"http://{HOST}:{port}"
    assert not answers(address)
    assert not answers("no address")
    server = spawn([sys.executable, "-m", "http.server", str(port), "--bind", HOST], tmp_path / "log")
    try:
        assert wait_for(address, server, 60.0)
        with pytest.raises(ConfigurationError, match=f"Port {port} cannot be used .* Choose another with --port"):
            free_port(port, "--port")
        with pytest.raises(ConfigurationError, match=f"Port {port} at localhost cannot be used"):
            free_port(port, "--port", "localhost")
    finally:
        end_session(server.pid)
    assert not lives(server.pid)
    assert not wait_for(address, server, 60.0), "it has ended, so that nobody waits"


@pytest.mark.parametrize("port", [-5, 99999])
def test_a_port_that_does_not_exist_is_words(port):
    with pytest.raises(ConfigurationError, match=f"Port {port} does not exist; the last one is 65535"):
        free_port(port, "--port")
