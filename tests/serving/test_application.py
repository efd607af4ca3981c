"""The server's answers: MLflow's formats, a table of bad requests, limits, the token, metrics; no body makes it fail."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

from starlette.testclient import TestClient

from rltrack.agents.exported_policy import ExportedPolicy
from rltrack.errors import ConfigurationError
from rltrack.registry.models import POLICY, policy_of, write_model
from rltrack.serving.application import VERSION_HEADER, Limits, make_application
from rltrack.serving.following import Served
from rltrack.serving.server import serve
from tests.support.models import run_of_skill

JSON = {"Content-Type": "application/json"}
ACTION = [0.5]


@pytest.fixture(scope="module")
def follower(tmp_path_factory):
    """What the application asks of a follower, with a stored policy that always takes the same action."""
    folder = tmp_path_factory.mktemp("serving")
    write_model(policy_of(run_of_skill(folder / "mlruns", "half", 0.5), "best"), folder / "model")
    policy = ExportedPolicy.load(folder / "model" / "artifacts" / POLICY)
    return SimpleNamespace(served=Served(7, "half@best", policy, 0.0), is_reachable=True, failures=0)


def client_of(follower, limits=None, token=None):
    return TestClient(make_application(follower, limits or Limits(batch=4), token), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(follower):
    return client_of(follower)


def ask(client, body, **headers):
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post("/invocations", content=content, headers={**JSON, **headers})


@pytest.mark.parametrize(
    ("body", "predictions"),
    [
        ({"inputs": [[0.5]]}, [ACTION]),
        ({"inputs": [[0], [1]]}, [ACTION] * 2),
        ({"inputs": [0.25]}, ACTION),
        ({"instances": [[0.5], [1]]}, [ACTION] * 2),
        ({"dataframe_split": {"columns": ["x"], "data": [[0.1], [0.2]]}}, [ACTION] * 2),
        ({"dataframe_split": {"index": [4], "columns": [0], "data": [[0.1]]}}, [ACTION]),
        ({"inputs": [[0.5]], "params": {"deterministic": True}}, [ACTION]),
        ({"inputs": [[5]], "params": {"clip": True}}, [ACTION]),
        ({"inputs": [[1]], "params": None}, [ACTION]),
    ],
)
@pytest.mark.slow
def test_good_requests(client, body, predictions):
    answer = ask(client, body)
    assert (answer.status_code, answer.json()) == (200, {"predictions": predictions, "version": 7})
    assert answer.headers[VERSION_HEADER] == "7"


BAD = [
    ("", "no JSON"), ("{", "no JSON"), ("null", "no JSON object"), ("3", "no JSON object"), ("[]", "no JSON object"),
    ('"text"', "no JSON object"), ("{}", "Expected: one of inputs, instances, dataframe_split"),
    ('{"inputs": [[NaN]]}', "NaN and infinity are refused"), ('{"inputs": [[Infinity]]}', "NaN and infinity are refused"),
    ('{"inputs": [[-Infinity]]}', "NaN and infinity are refused"), (b"\xff\xfe", "no JSON"), ("[" * 5000, "no JSON"),
    ('{"inputs": [[1e999]]}', ""), ({"inputs": [[1]], "instances": [[1]]}, "has the keys: inputs, instances"),
    ({"inputs": [[1]], "more": 1}, "more"), ({"input": [[1]]}, "has the keys: input."),
    ({"dataframe_records": [{"x": 1}]}, "dataframe_records"), ({"inputs": None}, "else than numbers"),
    ({"inputs": "0.5"}, "else than numbers"), ({"inputs": [["0.5"]]}, "else than numbers"),
    ({"inputs": [[None]]}, "else than numbers"), ({"inputs": {"x": [1]}}, "else than numbers"),
    ({"inputs": [[{}]]}, "else than numbers"), ({"inputs": []}, "shape (0,)"), ({"inputs": 0.5}, "shape ()"),
    ({"inputs": [[0.5, 1]]}, "Expected: (1,) for one observation, or (n, 1)"), ({"inputs": [[[0.5]]]}, "shape (1, 1, 1)"),
    ({"inputs": [[0.5], [0.5, 1]]}, "differ in length"), ({"inputs": [[1.5]]}, "Allowed: 0.0 to 1.0"),
    ({"inputs": [[-1]]}, "at [0, 0] is -1.0"), ({"inputs": [[10**30]]}, ""), ({"inputs": [[0.5]] * 5}, "at most 4"),
    ({"instances": []}, "shape (0,)"), ({"instances": [{"x": 1}, {"y": 1}]}, "same keys"),
    ({"instances": [{"x": 1}]}, "else than numbers"), ({"dataframe_split": []}, "no rows"),
    ({"dataframe_split": {"columns": ["x"]}}, "no rows"), ({"dataframe_split": {"columns": "x", "data": [[1]]}}, "no list"),
    ({"dataframe_split": {"columns": ["x", "y"], "data": [[1]]}}, "another length"),
    ({"dataframe_split": {"columns": ["x", "y"], "data": [[1, 0]]}}, "shape (1, 2)"),
    ({"dataframe_split": {"data": [[1]], "dtype": "f"}}, "no rows"), ({"inputs": [[1]], "params": []}, "params is no object"),
    ({"inputs": [[1]], "params": {"determinstic": True}}, "Unknown parameters: determinstic. Allowed: deterministic, clip"),
    ({"inputs": [[1]], "params": {"deterministic": 1}}, "neither true nor false"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "word"), BAD)
def test_bad_requests_get_one_line(client, body, word):
    answer = ask(client, body)
    told = answer.json()
    assert (answer.status_code, told.keys()) == (400, {"error_code", "message"})
    assert word in told["message"]
    assert "\n" not in told["message"]
    assert len(told["message"]) < 400
    assert not any(part in told["message"] for part in ("Traceback", ".py", "/"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.binary(max_size=60) | JSON_VALUES.map(json.dumps) | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("inputs", "instances", "dataframe_split", "params"), JSON_VALUES)
).map(json.dumps)  # fmt: skip
FRAMES = st.fixed_dictionaries({}, optional=dict.fromkeys(("columns", "data", "index"), JSON_VALUES))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES | FRAMES.map(lambda frame: json.dumps({"dataframe_split": frame})))
@pytest.mark.slow
def test_no_body_makes_the_server_fail(client, body):
    answer = ask(client, body)
    assert answer.status_code in (200, 400), body
    assert "Traceback" not in answer.text


def test_other_addresses_methods_and_content(client):
    for method, path, status in (("GET", "/ping", 200), ("GET", "/health", 200), ("GET", "/version", 200),
                                 ("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/invocations", 405),
                                 ("POST", "/ping", 405), ("GET", "/../etc/passwd", 404)):  # fmt: skip
        assert client.request(method, path).status_code == status, path
    import mlflow

    assert client.get("/version").text == mlflow.__version__
    answer = client.post("/invocations", content=b"x=1", headers={"Content-Type": "text/csv"})
    assert (answer.status_code, "application/json" in answer.json()["message"]) == (415, True)


def test_limits(follower):
    small = client_of(follower, Limits(body_bytes=50))
    assert ask(small, {"inputs": [[0.5]]}).status_code == 200
    assert ask(small, {"inputs": [[0.5]] * 20}).status_code == 413
    parts = small.post("/invocations", content=(b" " * 30 for _ in range(3)), headers=JSON)  # of no announced length
    assert parts.status_code == 413
    answer = ask(client_of(follower, Limits(seconds=1e-9)), {"inputs": [[0.5]]})
    assert (answer.status_code, answer.json()["error_code"]) == (503, "TIMEOUT")


def test_a_token_is_asked_for(follower):
    client = client_of(follower, token="secret-word")
    good = {"Authorization": "Bearer secret-word"}
    body = {"inputs": [[0.5]]}
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret-word"}):
        refused = ask(client, body, **headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "secret" not in refused.text
        assert client.get("/metrics", headers=headers).status_code == 401
    assert ask(client, body, **good).status_code == 200
    assert client.get("/metrics", headers=good).status_code == 200
    assert client.get("/ping").status_code == 200


@pytest.mark.parametrize("token", ["schlüssel", "word\n"])
def test_a_token_that_no_header_can_hold_is_refused_at_the_start(token, monkeypatch):
    monkeypatch.setenv("RLTRACK_SERVE_TOKEN", token)
    with pytest.raises(ConfigurationError, match="RLTRACK_SERVE_TOKEN"):
        serve(None, "tiny", port=0, notify=pytest.fail)


def test_metrics(follower):
    client = client_of(follower)
    ask(client, {"inputs": [[0.5]]})
    ask(client, {"inputs": [[7]]})
    ask(client, "{")
    lines = client.get("/metrics").text.splitlines()
    for line in ('rltrack_requests_total{status="200"} 1.0', 'rltrack_requests_total{status="400"} 2.0',
                 'rltrack_errors_total{kind="bad_input"} 2.0', "rltrack_request_seconds_count 3.0",
                 "rltrack_model_version 7.0", "rltrack_registry_up 1.0", "rltrack_load_failures 0.0"):  # fmt: skip
        assert line in lines
    assert any(line.startswith("rltrack_seconds_since_promotion ") for line in lines)


def test_an_error_of_the_policy_is_reported_without_a_trace(follower, capsys):
    def fail(*given, **more):
        raise RuntimeError("at /secret/path")

    policy = follower.served.policy
    broken = SimpleNamespace(
        predict=fail, observation_space=policy.observation_space, is_masked=False, is_recurrent=False, has_keys=False
    )
    answer = ask(client_of(SimpleNamespace(served=Served(1, "x", broken, 0.0))), {"inputs": [[0.5]]})
    assert answer.status_code == 500
    assert answer.json() == {"error_code": "INTERNAL", "message": "The server could not answer; its log says why."}
    assert "at /secret/path" in capsys.readouterr().err
