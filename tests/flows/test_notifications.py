"""Messages through Prefect's own blocks and automations, to a receiver on this machine."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rltrack.errors import ConfigurationError
from tests.flows.test_deploy import ours, team  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture
def receiver():
    """A web server that keeps what is posted to it."""
    got: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    server.server_close()


def test_messages_about_a_champion_and_an_interrupted_run(client, ours, receiver):  # noqa: F811
    from prefect.blocks.webhook import Webhook
    from prefect.client.schemas.objects import StateType
    from prefect.events import emit_event
    from prefect.states import State

    address, got = receiver
    block = f"receiver-{ours.installation.name}"
    Webhook(url=address, allow_private_urls=True).save(block)
    done = ours.deploy(notify=[f"webhook/{block}"])
    made = [name for name, action in done.items() if "notify" in name and action == "create"]
    assert len(made) == 2
    deployment = client.read_deployment_by_name(ours.deployment)
    related = [{"prefect.resource.id": f"prefect.deployment.{deployment.id}", "prefect.resource.role": "deployment"}]
    deadline = time.monotonic() + 60
    while not any("better by far" in text for text in got) and time.monotonic() < deadline:
        emit_event(  # again and again: the server takes a moment to know a new automation
            "rltrack.champion.promoted",
            resource={"prefect.resource.id": "rltrack.model.walker", "prefect.resource.name": "walker"},
            related=related,
            payload={"model": "walker", "version": 4, "run": "w@v2", "reason": "better by far"},
        )
        time.sleep(1)
    assert any("rltrack.champion.promoted: model walker, version 4 (w@v2). better by far" in text for text in got), got
    run = client.create_flow_run_from_deployment(deployment.id, name="walk")
    client.set_flow_run_state(run.id, State(type=StateType.FAILED, message="out of ground"), force=True)
    while not any("out of ground" in text for text in got) and time.monotonic() < deadline + 60:
        time.sleep(0.5)
    assert any("prefect.flow-run.Failed" in text and "walk" in text and "out of ground" in text for text in got), got
    assert json.dumps(got)
    assert all(
        action == "keep" for name, action in ours.deploy(notify=[f"webhook/{block}"]).items() if "notify" in name
    )


def test_blocks_that_cannot_send_are_refused(client, ours):  # noqa: F811
    for block, word in (("slack", "TYPE/NAME"), ("slack-webhook/nobody", "no such block")):
        with pytest.raises(ConfigurationError, match=word):
            ours.deploy(notify=[block])
