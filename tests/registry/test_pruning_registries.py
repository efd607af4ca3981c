"""What registered models come from is never deleted, wherever the model is; and a deletion that fails is undone."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import threading
import uuid

import pytest

pytest.importorskip("mlflow")

from mlflow.tracking import MlflowClient

from rltrack.checkpoints.mirror import write_state
from rltrack.checkpoints.remote import Claim, RemoteRun
from rltrack.cli import run_command
from rltrack.errors import ConfigurationError, RegistryUnavailable
from rltrack.registry import deletion, origins
from rltrack.registry.pruning import RunFilter, find_prunable, prune
from rltrack.runs import Root
from rltrack.tracking.destination import Destination
from rltrack.tracking.sinks.embedded import ensure_database
from tests.support.runs import made_run, run_id_of
from tests.support.servers import MlflowServer

ALL = RunFilter(pattern="*")
KEY = "a key for tests only"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An empty MLflow database: making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("template")
    ensure_database(folder)
    return folder / "mlflow.db"


@pytest.fixture
def databases(own_root, tmp_path, template):
    """Two: the root's own and another."""
    own_root.mkdir()
    other = tmp_path / "other.db"
    shutil.copy(template, own_root / "mlflow.db")
    shutil.copy(template, other)
    return {"own": f"sqlite:///{own_root / 'mlflow.db'}", "other": f"sqlite:///{other}"}


def mlflow_run(uri, run_id=None, tmp_path=None):
    client = MlflowClient(uri, uri)
    found = client.get_experiment_by_name("rltrack")
    experiment = found.experiment_id if found else client.create_experiment("rltrack")
    return client.create_run(experiment, tags={"rltrack.run_id": run_id} if run_id else {}).info.run_id


def register(uri, tags=None, run_id=None, model="cart"):
    client = MlflowClient(uri, uri)
    if not client.search_registered_models(f"name='{model}'"):
        client.create_registered_model(model)
    source = f"{client.get_run(run_id).info.artifact_uri}/model" if uri.startswith("http") else "/nowhere"
    client.create_model_version(model, source, run_id=run_id, tags=tags or {})


def kept(root, **options):
    return {item.run.name: item.kept for item in find_prunable(root, ALL, whole=False, **options)}


def destination_of(where, databases):
    return Destination(tracking_uri=databases["other"]) if where == "other" else None


RECOGNISED = {
    # how the version says where it comes from; whether that is the run
    "by the run's id": (lambda run, mlflow: ({"rltrack.policy": f"{run_id_of(run)}/v2", "rltrack.run": "x"}, None), True),
    "renamed since": (lambda run, mlflow: ({"rltrack.policy": f"{run_id_of(run)}/v2", "rltrack.run": "old"}, None), True),
    "by MLflow's id": (lambda run, mlflow: ({}, mlflow), True),
    "by name, older": (lambda run, mlflow: ({"rltrack.run": run.name, "rltrack.version": "v2"}, None), True),
    "a stranger's of the same name": (
        lambda run, mlflow: ({"rltrack.policy": f"{uuid.uuid4().hex}/v2", "rltrack.run": run.name}, None), False,
    ),
    "a stranger's": (lambda run, mlflow: ({"rltrack.policy": f"{uuid.uuid4().hex}/v2", "rltrack.run": "y"}, None), False),
    "not rltrack's": (lambda run, mlflow: ({}, None), False),
}  # fmt: skip


@pytest.mark.slow
def test_a_run_is_recognised_by_its_id_in_every_registry(own_root, databases):
    """Every way to say it, in every registry, for a run that was delivered to either."""
    expected = {}
    for index, (how, model_in, run_in) in enumerate(itertools.product(RECOGNISED, databases, databases)):
        tags_of, ours = RECOGNISED[how]
        mlflow = mlflow_run(databases[run_in])
        run = made_run(own_root, f"run-{index}", destination=destination_of(run_in, databases), mlflow_run_id=mlflow)
        tags, run_id = tags_of(run, mlflow)
        register(databases[model_in], tags, run_id, model=f"model-{index}")
        expected[run.name] = f"it is the origin of version 1 of model 'model-{index}'" if ours else None
    root = Root(own_root)
    assert kept(root) == expected
    found = find_prunable(root, ALL, whole=False)
    assert prune(root, found, whole=False, notify=lambda text: None) == []
    for run in root.runs():  # what can be gone on from is there exactly where it was to be kept
        resumable = [version.name for version in run.store().versions() if version.is_resumable]
        assert resumable == (["v1", "v3"] if expected[run.name] else []), run.name
        assert run.store().find("best").name == "v2"


@pytest.mark.slow
def test_a_model_where_the_environment_says_now(own_root, databases, monkeypatch):
    one, two = (made_run(own_root, name) for name in ("one", "two"))
    register(databases["other"], {"rltrack.policy": f"{run_id_of(one)}/v2"})
    assert kept(Root(own_root)) == {"one": None, "two": None}
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, databases["other"])
            assert kept(Root(own_root)) == {"one": "it is the origin of version 1 of model 'cart'", "two": None}
    register(databases["own"], {"rltrack.policy": f"{run_id_of(two)}/v2"})
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", databases["other"])  # does not hide what the root's own database has
    assert None not in kept(Root(own_root)).values()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def hung_server():
    """Takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def no_answer(kind, tmp_path, hung_server):
    return {
        "nobody listens": f"http://127.0.0.1:{free_port()}",
        "hangs": hung_server,
        "its file is gone": f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}",
        "no database server": f"postgresql+psycopg://rl:secret@127.0.0.1:{free_port()}/mlflow",
    }[kind]


@pytest.mark.parametrize("kind", ["nobody listens", "hangs", "its file is gone", "no database server"])
@pytest.mark.slow
def test_a_registry_that_does_not_answer_refuses_everything(
    own_root, databases, tmp_path, hung_server, kind, monkeypatch, capsys
):
    monkeypatch.setattr(origins, "SILENCE_SECONDS", 2.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    address = no_answer(kind, tmp_path, hung_server)
    made_run(own_root, "there", destination=Destination(tracking_uri=address))
    made_run(own_root, "here")
    before = {name: sorted((own_root / "runs" / name).rglob("*")) for name in ("there", "here")}
    for more in ((), ("--runs",)):
        assert run_command(["prune", "--match", "*", "--yes", *more]) == 1
        said = capsys.readouterr().err
        assert "Nothing is deleted" in said
        assert "used by there" in said
        assert "--registry-gone" in said
        assert "Traceback" not in said
        assert "secret" not in said
    assert {name: sorted((own_root / "runs" / name).rglob("*")) for name in ("there", "here")} == before
    assert not (tmp_path / "gone").exists(), "asking makes no database"
    shown = address.replace("secret", "***")
    assert run_command(["prune", "--match", "*", "--runs", "--yes", "--registry-gone", shown]) == 0
    assert Root(own_root).names() == []


@pytest.mark.slow
def test_what_is_gone_must_be_in_use(own_root, databases):
    made_run(own_root, "one")
    with pytest.raises(ConfigurationError, match="no run uses that address"):
        kept(Root(own_root), gone=["http://127.0.0.1:1"])


def test_an_unreadable_destination_refuses(own_root, databases):
    run = made_run(own_root, "one", destination=Destination(tracking_uri=databases["other"]))
    for content in ("{", "[]", '{"tracking_uri": 5}', '{"tracking_uri": null, "experiment": null}', "[" * 100_000):
        run.destination_file.write_text(content)
        with pytest.raises(ConfigurationError, match=r"destination.json cannot be read"):
            kept(Root(own_root))


# ---- deleting whole runs ----


def whole_run(root, name, uri, tmp_path, *, borrowed=False, tagged=True):
    own = uuid.uuid4().hex
    mlflow = mlflow_run(uri, own if tagged else None)
    destination = Destination(tracking_uri=uri, mlflow_run_id=mlflow if borrowed else None)
    run = made_run(
        root, name, run_id=own, destination=destination, mlflow_run_id=mlflow, store=f"file://{tmp_path}/store"
    )
    remote = RemoteRun(f"file://{tmp_path}/store", name, KEY.encode())
    remote.claim(Claim(1, own, 0, 0, "here"))
    write_state(run.path, 1, 0)
    return run, mlflow


def lifecycle(uri, mlflow):
    return MlflowClient(uri).get_run(mlflow).info.lifecycle_stage


def delete_all(root):
    told = []
    failed = prune(root, find_prunable(root, ALL, whole=True), whole=True, notify=told.append)
    return failed, told


def everything(run, tmp_path):
    return sorted(str(path) for folder in (run.path, tmp_path / "store" / run.name) for path in folder.rglob("*"))


@pytest.fixture
def root(own_root, databases, monkeypatch):
    monkeypatch.setenv("RLTRACK_SIGNING_KEY", KEY)
    return Root(own_root)


def test_a_whole_run_goes_where_it_was_delivered_to(root, databases, tmp_path):
    _, mlflow = whole_run(root.path, "one", databases["other"], tmp_path)
    failed, told = delete_all(root)
    assert (failed, told) == ([], ["one: deleted"])
    assert lifecycle(databases["other"], mlflow) == "deleted"
    assert os.listdir(root.runs_folder) == []
    assert os.listdir(tmp_path / "store") == []


FAILING = {
    "mlflow": (deletion.MlflowClient, "delete_run"),
    "folder": (deletion, "_move_to_deleted"),
    "remote": (RemoteRun, "remove"),
}


@pytest.mark.parametrize("step", FAILING)
@pytest.mark.slow
def test_where_a_step_fails_the_ones_before_are_undone_and_others_go(root, databases, tmp_path, monkeypatch, step):
    uri = databases["other"]
    first, mlflow = whole_run(root.path, "a-first", uri, tmp_path)
    _, other = whole_run(root.path, "b-other", uri, tmp_path)
    before = everything(first, tmp_path)
    owner, name = FAILING[step]
    real, calls = getattr(owner, name), itertools.count()

    def fails_once(*arguments):
        if next(calls) == 0:
            raise OSError("the disk is on fire, says http://rl:secret@store")
        return real(*arguments)

    monkeypatch.setattr(owner, name, fails_once)
    failed, told = delete_all(root)
    assert failed == ["a-first"]
    assert any(text.startswith("a-first: not deleted:") and "on fire" in text for text in told)
    assert "secret" not in str(told)
    assert ("a-first: MLflow run" in str(told)) == (step != "mlflow"), "it says what it undid"
    assert [path for path in before if not os.path.exists(path)] == []
    assert lifecycle(uri, mlflow) == "active"
    assert first.status().state == "completed"
    assert told[-1] == "b-other: deleted"
    assert lifecycle(uri, other) == "deleted"
    assert os.listdir(root.runs_folder) == ["a-first"]


def test_the_command_says_so_with_its_exit_code(root, databases, tmp_path, monkeypatch, capsys):
    whole_run(root.path, "one", databases["other"], tmp_path)
    monkeypatch.delenv("RLTRACK_SIGNING_KEY")  # the store cannot be opened: found out before anything is deleted
    assert run_command(["prune", "--match", "*", "--runs", "--yes"]) == 1
    said = capsys.readouterr().err
    assert "one: not deleted: checkpoints.store needs a key" in said
    assert "Traceback" not in said
    assert root.names() == ["one"]


def test_a_folder_that_cannot_be_deleted_for_good_is_named_and_tried_again(root, databases, tmp_path, monkeypatch):
    whole_run(root.path, "one", databases["other"], tmp_path)

    def fails(path):
        raise OSError("busy")

    with monkeypatch.context() as patched:
        patched.setattr(deletion, "_delete_folder", fails)
        failed, told = delete_all(root)
    assert failed == ["one"]
    assert ".deleted" in told[-1]
    assert root.names() == []
    assert delete_all(root) == ([], ["one: the rest of an earlier deletion is deleted"])
    assert os.listdir(root.runs_folder) == []


def test_a_prune_that_was_killed_is_finished_by_the_next(root, databases, tmp_path):
    run, _ = whole_run(root.path, "one", databases["other"], tmp_path)
    deletion._move_to_deleted(run)  # and no further
    assert root.names() == []
    assert delete_all(root)[0] == []
    assert os.listdir(tmp_path / "store") == []
    assert os.listdir(root.runs_folder) == []


def test_only_what_carries_our_id_is_touched(root, databases, tmp_path):
    uri = databases["other"]
    _, borrowed = whole_run(root.path, "borrowed", uri, tmp_path, borrowed=True)
    _, untagged = whole_run(root.path, "untagged", uri, tmp_path, tagged=False)
    whole_run(root.path, "theirs", uri, tmp_path)
    shutil.rmtree(tmp_path / "store" / "theirs")
    RemoteRun(f"file://{tmp_path}/store", "theirs", KEY.encode()).claim(Claim(1, "another-runs-id", 0, 0, "there"))
    (tmp_path / "store" / "no-copy").mkdir()
    (tmp_path / "store" / "no-copy" / "thesis.txt").write_text("years of work")
    made_run(root.path, "no-copy", store=f"file://{tmp_path}/store")
    failed, told = delete_all(root)
    assert failed == []
    assert lifecycle(uri, borrowed) == lifecycle(uri, untagged) == "active"
    assert sorted(os.listdir(tmp_path / "store")) == ["no-copy", "theirs"]
    assert (tmp_path / "store" / "no-copy" / "thesis.txt").exists()
    assert sum("and is not deleted" in text for text in told) == 3


def test_what_a_copied_folder_shares_goes_with_the_last_of_them(root, databases, tmp_path):
    run, mlflow = whole_run(root.path, "one", databases["other"], tmp_path)
    elsewhere = tmp_path / "elsewhere" / "runs" / "one"
    shutil.copytree(run.path, elsewhere)
    MlflowClient(databases["other"]).set_tag(mlflow, "rltrack.directory", str(elsewhere))
    shutil.copytree(run.path, root.runs_folder / "one-backup")
    told = []
    candidates = find_prunable(root, RunFilter(pattern="one-backup"), whole=True)
    assert prune(root, candidates, whole=True, notify=told.append) == []
    assert told == [
        "one-backup: one is the same run, whose MLflow run and remote copy are not deleted",
        "one-backup: deleted",
    ]
    assert lifecycle(databases["other"], mlflow) == "active"
    assert os.listdir(tmp_path / "store") == ["one"]
    shutil.copytree(run.path, root.runs_folder / "one-backup")
    failed, told = delete_all(root)
    assert failed == []
    assert f"is that of the same run in {elsewhere}, and is not deleted" in " ".join(told)
    assert os.listdir(tmp_path / "store") == []
    assert lifecycle(databases["other"], mlflow) == "active"


def test_a_run_that_went_on_elsewhere_stays(root, databases, tmp_path):
    run, mlflow = whole_run(root.path, "one", databases["other"], tmp_path)
    RemoteRun(f"file://{tmp_path}/store", "one", KEY.encode()).claim(
        Claim(2, run_id_of(run), 3, 0, "the-other-machine")
    )
    failed, told = delete_all(root)
    assert failed == ["one"]
    assert "it was resumed on the-other-machine (attempt 2" in told[-1]
    assert lifecycle(databases["other"], mlflow) == "active"


def test_what_is_gone_already_stops_nothing(root, databases, tmp_path):
    uri = databases["other"]
    _, mlflow = whole_run(root.path, "deleted-there", uri, tmp_path)
    MlflowClient(uri).delete_run(mlflow)
    made_run(root.path, "never-there", destination=Destination(tracking_uri=uri), mlflow_run_id=uuid.uuid4().hex)
    missing, _ = whole_run(root.path, "missing", uri, tmp_path)
    found = find_prunable(root, ALL, whole=True)
    shutil.rmtree(missing.path)
    told = []
    assert prune(root, found, whole=True, notify=told.append) == ["missing"]
    assert any(text.startswith("missing: not deleted: run ") for text in told)
    assert root.names() == []


def test_a_run_that_cannot_be_read_stays_and_hides_no_other(root, databases):
    broken, _ = made_run(root.path, "broken"), made_run(root.path, "good")
    broken.journal_file.write_bytes(b"no record\n" + broken.journal_file.read_bytes())
    also = made_run(root.path, "also")
    also.config_file.write_text("tracking: [")
    found = kept(root)
    assert found["good"] is None
    assert found["broken"].startswith("it cannot be read: ")
    assert found["also"].startswith("it cannot be read: ")


def refusing(status):
    """A server that refuses everything but the registry's questions."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(200 if "registered-models" in self.path else status)

        def do_POST(self):
            self._answer(status)

        def _answer(self, code):
            body = b"{}" if code == 200 else b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_is_words(root, databases, capsys, status):
    server = refusing(status)
    try:
        uri = f"http://127.0.0.1:{server.server_port}"
        made_run(root.path, "one", destination=Destination(tracking_uri=uri), mlflow_run_id=uuid.uuid4().hex)
        assert run_command(["prune", "--match", "*", "--runs", "--yes"]) == 1
        said = capsys.readouterr().err
        assert "one: not deleted: MLflow run" in said
        assert "MLFLOW_TRACKING_TOKEN" in said
        assert "Traceback" not in said
        assert root.names() == ["one"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.nightly  # each time: test_a_registry_that_does_not_answer_refuses_everything
@pytest.mark.timeout(300)
def test_a_real_server_that_hangs_dies_and_comes_back(own_root, databases, tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "SILENCE_SECONDS", 5.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    server = MlflowServer(tmp_path / "server").start()
    root = Root(own_root)
    try:
        run = made_run(own_root, "far", destination=Destination(tracking_uri=server.uri))
        made_run(own_root, "near")
        register(server.uri, {"rltrack.policy": f"{run_id_of(run)}/v2"}, run_id=mlflow_run(server.uri))
        protected = {"far": "it is the origin of version 1 of model 'cart'", "near": None}
        assert kept(root) == protected
        server.signal(signal.SIGSTOP)
        with pytest.raises(RegistryUnavailable, match="used by far"):
            kept(root)
        server.kill()
        with pytest.raises(RegistryUnavailable, match="used by far"):
            kept(root)
        server.start()
        assert kept(root) == protected
    finally:
        server.kill()
