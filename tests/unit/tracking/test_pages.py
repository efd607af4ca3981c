"""Other commands find MLflow's page while it is served."""

from __future__ import annotations

import json
import subprocess
import sys

from rltrack.runs import Root
from rltrack.tracking.destination import MLFLOW_PAGE
from rltrack.tracking.pages import published, served_page


def test_a_page_is_found_while_it_is_served(tmp_path, monkeypatch):
    root = Root(tmp_path)
    monkeypatch.delenv(MLFLOW_PAGE, raising=False)
    assert served_page(root) is None
    with published(root, "http://127.0.0.1:5001"):
        assert served_page(root) == "http://127.0.0.1:5001"
        monkeypatch.setenv(MLFLOW_PAGE, "https://mlflow.example")
        assert served_page(root) == "https://mlflow.example"
        monkeypatch.delenv(MLFLOW_PAGE)
    assert served_page(root) is None
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_a_process_that_died_is_not_named(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    file = tmp_path / "mlflow-page.json"
    for found in (
        {"address": "http://127.0.0.1:5001", "pid": process.pid},
        {"address": "http://elsewhere.example:80", "pid": 1},
        {"address": "http://127.0.0.1:80@elsewhere.example", "pid": 1},
        {"address": "http://127.0.0.1:80/\x1b[2J", "pid": 1},
        {"address": "http://127.0.0.1:80", "pid": 10**30},
        {"address": 7, "pid": 1},
        ["address", "pid"],
    ):
        file.write_text(json.dumps(found))
        assert served_page(Root(tmp_path)) is None
