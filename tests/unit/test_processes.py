"""Background processes, and servers on this machine's own address."""

from __future__ import annotations

import os
import sys

import pytest

from rltrack.errors import ConfigurationError
from rltrack.loopback import HOST, answers, free_port, last_words, wait_for
from rltrack.processes import end_session, lives, spawn


def test_a_background_process_leads_its_own_session_and_writes_to_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import os, sys; print(os.environ['WORD'], os.getsid(0) == os.getpid(), flush=True); print('err', file=sys.stderr)"
    process = spawn([sys.executable, "-c", code], log, {**os.environ, "WORD": "hello"})
    assert process.wait(60) == 0
    assert last_words(log).split() == ["before", "hello", "True", "err"]
    with pytest.raises(OSError, match="nowhere"):
        spawn(["/nowhere/at/all"])


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
