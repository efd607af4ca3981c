"""Models that others can write: what is loaded and served is what was stored, and its configuration names nothing new."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

pytest.importorskip("stable_baselines3")

from rltrack import doctor
from rltrack.errors import ConfigurationError, ModelBroken, PolicyNotStorable
from rltrack.journal.lines import decode_record, encode_record, numbered_line
from rltrack.permissions import KNOWN_WRAPPERS
from rltrack.registry.audit import faults_of, old_models, runs_described_wrongly
from rltrack.registry.champions import champion_origin, evaluate_champion, load_champion, rollback
from rltrack.registry.digest import DIGEST_TAG, digest_of
from rltrack.registry.gate import Gate
from rltrack.registry.loading import LoadedPolicy
from rltrack.registry.model_registry import ModelRegistry
from rltrack.registry.models import as_current, policy_of, signature_of
from rltrack.registry.permissions import check_names
from rltrack.registry.promotion import promote
from rltrack.runs import Root
from rltrack.serving.following import Follower
from tests.support.models import TINY, run_of_skill

GATE = Gate(episodes=30)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with a champion; each test leaves it as it was."""
    path = tmp_path_factory.mktemp("shared") / "mlruns"
    promote(run_of_skill(path, "own", 0.5), "tiny", gate=GATE)
    return Root(path)


@pytest.fixture
def champion(root):
    return ModelRegistry(root).by_alias("tiny", "champion")


@pytest.fixture
def files(root, champion, tmp_path):
    """The champion's files, where whoever can write artifacts finds them; put back afterwards."""
    folder = files_of(root, champion)
    shutil.copytree(folder, tmp_path / "backup", symlinks=True)
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder, symlinks=True)


def files_of(root, item) -> Path:
    return Path(ModelRegistry(root).client.get_logged_model(item.model_id).artifact_location.removeprefix("file://"))


@pytest.fixture
def without_digest(root, champion):
    """The champion as an older rltrack stored it."""
    client = ModelRegistry(root).client
    client.delete_logged_model_tag(champion.model_id, DIGEST_TAG)
    client.delete_model_version_tag("tiny", str(champion.version), DIGEST_TAG)
    yield
    client.set_logged_model_tags(champion.model_id, {DIGEST_TAG: champion.tags[DIGEST_TAG]})
    client.set_model_version_tag("tiny", str(champion.version), DIGEST_TAG, champion.tags[DIGEST_TAG])


def served(root, item):
    """The policy that a server of a version acts with."""
    return Follower(ModelRegistry(root), "tiny", item, None, print).served.policy


def edit(file: Path, change) -> None:
    file.write_text(change(file.read_text()))


def other_weights(folder):
    file = folder / "artifacts/policy/policy.safetensors"
    save_file({key: value + 1 for key, value in load_file(file).items()}, file)


def shell_command(ran: Path):
    return lambda text: json.dumps(
        json.loads(text)
        | {"policy_kwargs": {"activation_fn": {"$class": "torch.hub.subprocess.Popen"}}, "ran": str(ran)}
    )


ATTACKS = {
    "other weights": other_weights,
    "another policy.json": lambda folder: edit(folder / "artifacts/policy/policy.json", lambda text: text + " "),
    "a wrapper in its configuration": lambda folder: edit(
        folder / "artifacts/policy/config.yaml",
        lambda text: yaml.safe_dump(with_environment(yaml.safe_load(text), wrappers=[{"subprocess.Popen": {}}])),
    ),
    "another configuration": lambda folder: edit(folder / "artifacts/policy/config.yaml", lambda text: text + "\n# x\n"),
    "code of its own": lambda folder: edit(folder / "served_policy.py", lambda text: "import os\n" + text),
    "another reader": lambda folder: edit(folder / "code/exported_policy.py", lambda text: text + "\nimport os\n"),
    "a module that shadows another": lambda folder: (folder / "code/json.py").write_text("raise SystemExit"),
    "compiled code without a source": lambda folder: (folder / "code/json.pyc").write_bytes(b"\0" * 16),
    "a start-up file": lambda folder: (folder / "code/sitecustomize.py").write_text(""),
    "a package": lambda folder: [(folder / "code/yaml").mkdir(), (folder / "code/yaml/__init__.py").write_text("")],
    "another MLmodel": lambda folder: edit(folder / "MLmodel", lambda text: text.replace("python_function", "python_function ")),
    "another loader": lambda folder: edit(
        folder / "MLmodel", lambda text: text.replace("mlflow.pyfunc.loaders.code_model", "subprocess")
    ),
    "another requirement": lambda folder: edit(folder / "requirements.txt", lambda text: text + "\nsomething-else\n"),
    "a file less": lambda folder: (folder / "requirements.txt").unlink(),
    "a file under another name": lambda folder: os.rename(folder / "conda.yaml", folder / "conda.yml"),
    "two files the other way round": lambda folder: [
        shutil.copy(folder / "conda.yaml", folder / "x"), shutil.copy(folder / "python_env.yaml", folder / "conda.yaml"),
        os.rename(folder / "x", folder / "python_env.yaml"),
    ],
    "a link to another file": lambda folder: [
        (folder / "conda.yaml").unlink(), (folder / "conda.yaml").symlink_to("/etc/hostname")
    ],
}  # fmt: skip


def with_environment(config, **section):
    return {**config, "environment": {**config["environment"], **section}}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_changed_files_are_noticed_before_anything_is_read(root, champion, files, attack):
    attack(files)
    noticed = "is not what was stored|outside the artifact directory"  # the latter is MLflow's own answer to a link
    with pytest.raises(ModelBroken, match=noticed) as told:
        load_champion(ModelRegistry(root), "tiny", champion)
    assert "rltrack rollback" in str(told.value)
    with pytest.raises(ModelBroken, match=noticed):
        served(root, champion)


@pytest.mark.slow
def test_every_command_that_loads_a_model_compares(root, champion, files, tmp_path):
    other_weights(files)
    with pytest.raises(ModelBroken, match="is not what was stored"):
        evaluate_champion(root, "tiny", episodes=30)
    with pytest.raises(ModelBroken, match="is not what was stored"):
        champion_origin(root, "tiny")  # what a retraining begins with
    registry = ModelRegistry(root)
    registry.client.delete_registered_model_alias("tiny", "champion")
    try:
        with pytest.raises(ModelBroken, match="is not what was stored"):
            rollback(root, "tiny", to=champion.version)
    finally:
        registry.point("tiny", "champion", champion.version)
    with pytest.raises(ModelBroken, match="is not what was stored"):
        promote(run_of_skill(root.path, "challenger", 0.9), "tiny", gate=GATE)
    assert registry.aliases("tiny")["champion"] == champion.version


@pytest.mark.slow
def test_a_changed_tag_of_the_model_is_noticed_by_its_versions(root, champion, files):
    client = ModelRegistry(root).client
    other_weights(files)
    client.set_logged_model_tags(champion.model_id, {DIGEST_TAG: digest_of(files)})
    try:
        with pytest.raises(ModelBroken, match="is not what was stored"):
            load_champion(ModelRegistry(root), "tiny", champion)
    finally:
        client.set_logged_model_tags(champion.model_id, {DIGEST_TAG: champion.tags[DIGEST_TAG]})


@pytest.mark.slow
def test_what_mlflow_and_python_add_is_no_change(root, champion, files):
    """Compiled code is taken away from the copy, since Python would run it instead of the file beside it."""
    (files / "registered_model_meta").write_text("model_name: tiny\n")
    (files / "code/__pycache__").mkdir()
    (files / "code/__pycache__/exported_policy.cpython-311.pyc").write_bytes(b"hostile")
    load_champion(ModelRegistry(root), "tiny", champion)
    served(root, champion)


@pytest.mark.slow
def test_what_is_served_runs_our_own_code_only(root, champion, files, without_digest):
    """Even of a model without a digest: nothing that lies in it is run, and later changes change nothing."""
    (files / "served_policy.py").write_text("raise SystemExit('hostile')\n")
    (files / "code/json.py").write_text("raise SystemExit('hostile')\n")
    champion = ModelRegistry(root).version("tiny", champion.version)
    assert DIGEST_TAG not in champion.tags
    policy = served(root, champion)
    (files / "artifacts/policy/policy.safetensors").write_bytes(b"changed after the start")
    assert np.allclose(policy.predict(np.zeros((2, *policy.observation_space.shape), np.float32))[0], 0.5)
    with pytest.raises(ModelBroken):
        served(root, champion)


@pytest.mark.slow
def test_without_a_digest_the_closed_list_still_holds(root, champion, files, without_digest, tmp_path):
    assert load_champion(ModelRegistry(root), "tiny", champion).source.startswith("own@")
    edit(files / "artifacts/policy/policy.json", shell_command(tmp_path / "ran"))
    with pytest.raises(ModelBroken, match="it cannot be loaded"):
        evaluate_champion(root, "tiny", episodes=30)
    for text in ("[]", "\x00", "a: &a [*a]", "!!python/object/apply:os.system [id]", "environment: 3", "{}"):
        (files / "artifacts/policy/config.yaml").write_text(text)
        with pytest.raises((ModelBroken, ConfigurationError)):
            evaluate_champion(root, "tiny", episodes=30)


@pytest.mark.slow
def test_a_champions_configuration_runs_no_code(root, champion, files, without_digest, tmp_path, monkeypatch):
    package = tmp_path / "hostile_wrappers.py"
    package.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef wrap(env): return env\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = files / "artifacts/policy/config.yaml"
    config = yaml.safe_load(file.read_text())
    for section in (
        {"wrappers": ["hostile_wrappers.wrap"]},
        {"id": f"hostile_wrappers:{TINY.partition(':')[2]}"},
        {"wrappers": [{"subprocess.Popen": {}}]},
        {"kwargs": {"key": {"env": "HOME"}}},
    ):
        file.write_text(yaml.safe_dump(with_environment(config, **section)))
        for command in (lambda: evaluate_champion(root, "tiny", episodes=30), lambda: champion_origin(root, "tiny")):
            with pytest.raises(ConfigurationError, match="none of your own"):
                command()
    assert not (tmp_path / "ran").exists()


REFUSED = {
    "a process": {"wrappers": [{"subprocess.Popen": {"args": "id"}}]},
    "a process, with a colon": {"wrappers": ["subprocess:Popen"]},
    "a shell": {"wrappers": ["os.system"]},
    "eval": {"wrappers": ["builtins.eval"]},
    "a file anywhere, by SB3": {"wrappers": [{"stable_baselines3.common.monitor.Monitor": {"filename": "/tmp/x"}}]},
    "a file anywhere, by Gymnasium": {"wrappers": [{"gymnasium.wrappers.RecordVideo": {"video_folder": "/tmp/x"}}]},
    "a re-export of Gymnasium": {"wrappers": ["gymnasium.envs.registration.importlib.import_module"]},
    "a re-export of SB3": {"wrappers": ["stable_baselines3.common.utils.os.system"]},
    "a pickle": {"wrappers": [{"stable_baselines3.common.save_util.load_from_pkl": {}}]},
    "torch": {"wrappers": ["torch.hub.load"]},
    "a wrapper of somebody": {"wrappers": ["somebody.wrappers.Wrapper"]},
    "a wrapper behind a harmless one": {"wrappers": ["gymnasium.wrappers.ClipAction", "somebody.Wrapper"]},
    "another name of a module of our own": {"wrappers": ["tests.support.policies.Popen"]},
    "a module before an id": {"id": "evil:Env-v0"},
    "a path before an id": {"id": "../../evil:Env-v0"},
    "a module of ours, only nearly": {"id": "tests.support.agents.more:Env-v0"},
    "a secret": {"kwargs": {"url": {"env": "AWS_SECRET_ACCESS_KEY"}}},
    "a secret deep inside": {"kwargs": {"options": {"list": [{"env": "MLFLOW_TRACKING_PASSWORD"}]}}},
}


def of(config, source="somebody@v1"):
    return LoadedPolicy(None, config, source)


@pytest.mark.parametrize("section", REFUSED.values(), ids=REFUSED.keys())
def test_names_that_no_configuration_of_ones_own_has(own_root, section):
    own = {
        "environment": {"id": TINY, "wrappers": ["tests.support.policies.OwnWrapper"], "kwargs": {"k": {"env": "MINE"}}}
    }
    hostile = {"environment": {**own["environment"], **section}}
    with pytest.raises(ConfigurationError, match="none of your own"):
        check_names(of(hostile), Root(own_root), [own])


def test_names_that_are_allowed(own_root, monkeypatch):
    root = Root(own_root)
    for wrapper in sorted(KNOWN_WRAPPERS):
        check_names(of({"environment": {"id": "CartPole-v1", "wrappers": [wrapper]}}), root)
    for env_id in ("CartPole-v1", "ale_py:ALE/Pong-v5", "rltrack.benchmarks.environments:BitFlip-v0"):
        check_names(of({"environment": {"id": env_id}}), root)
    check_names(of({}), root)
    named = {
        "environment": {
            "id": "mine.envs:Env-v0",
            "wrappers": [
                {"mine.wrappers.Wrapper": {"k": 1}},
                {"gymnasium.wrappers.RecordVideo": {"video_folder": "films"}},
            ],
            "kwargs": {"key": {"env": "MINE"}},
        }
    }
    with pytest.raises(ConfigurationError, match=r"'mine\.envs'.*set RLTRACK_ALLOWED_MODULES"):
        check_names(of({"environment": {"id": "mine.envs:Env-v0"}}), root)
    check_names(of(named), root, [named])  # the challenger's own
    other = {
        "environment": {**named["environment"], "wrappers": [{"gymnasium.wrappers.RecordVideo": {"video_folder": "/"}}]}
    }
    with pytest.raises(ConfigurationError, match="RecordVideo"):
        check_names(of(other), root, [named])
    run = root.create("mine", "mine")  # its own run under this root
    run.journal_file.write_text("")
    run.write_config(named)
    check_names(of(named, "mine@v3"), root)
    for source in ("other@v3", "../mine@v3", "@", "None@None"):
        with pytest.raises(ConfigurationError):
            check_names(of(named, source), root)
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "somebody")
    check_names(of({"environment": {"id": "somebody.envs:E-v0", "wrappers": ["somebody.w.Wrapper"]}}), root)
    with pytest.raises(ConfigurationError):
        check_names(of({"environment": {"id": "somebody_else:E-v0"}}), root)


# ---- what was stored before ----


@pytest.mark.slow
def test_doctor_names_what_is_stored_in_the_old_form(root, champion, files, without_digest):
    assert [(item.model, item.version, item.wrong) for item in old_models(root)] == [("tiny", 1, "")]
    [finding] = [finding for finding in doctor.examine(root.path) if finding.what == "models"]
    assert finding.good is None
    assert f"rltrack promote {champion.source} --model tiny" in finding.found
    (files / "artifacts/policy/policy.json").write_text(json.dumps(OLD))
    [finding] = [finding for finding in doctor.examine(root.path) if finding.what == "models"]
    assert finding.good is False
    assert "not in alphabetical order" in finding.found


@pytest.mark.slow
def test_doctor_is_silent_about_what_is_stored_well(root, champion):
    assert champion.tags[DIGEST_TAG].startswith("sha256:")
    assert old_models(root) == []
    assert [finding for finding in doctor.examine(root.path) if finding.what in ("models", "runs")] == []


def test_doctor_goes_on_where_the_database_cannot_be_read(own_root):
    own_root.mkdir()
    (own_root / "mlflow.db").write_bytes(b"no database")
    found = {finding.what: finding for finding in doctor.examine(own_root)}
    assert found["database"].good is None
    assert "could not be read" in found["database"].found
    assert "extra zoo" in found


BOX = {"type": "Box", "shape": [3], "dtype": "float32", "low": -9.0, "high": 9.0}
IMAGE = {"type": "Box", "shape": [8, 8, 3], "dtype": "float32", "low": -10.0, "high": 10.0}
OLD = {
    "format": 1, "algorithm": "PPO", "policy_class": "stable_baselines3.common.policies.MultiInputActorCriticPolicy",
    "policy_kwargs": {}, "takes_schedule": True, "observation_space": {"type": "Dict", "spaces": {"z": BOX, "a": BOX}},
    "input_space": {"type": "Dict", "spaces": {"z": BOX, "a": BOX}}, "action_space": {"type": "Discrete", "n": 2, "start": 0},
    "normalization": None, "frame_stack": None, "recurrent": False, "masked": False,
}  # fmt: skip


def test_faults_of_old_descriptions():
    assert "alphabetical" in "".join(faults_of(OLD))
    fine = {"type": "Dict", "spaces": {"a": BOX, "z": IMAGE}}
    assert list(faults_of({**OLD, "observation_space": fine, "input_space": fine})) == []
    normalised = {
        **OLD,
        "observation_space": fine,
        "input_space": fine,
        "normalization": {"epsilon": 1e-8, "clip": 10.0},
    }
    assert "'z' as uint8" in "".join(faults_of(normalised))
    hostile = ({}, [], None, {"format": 1}, {**OLD, "input_space": 3, "observation_space": {"type": "Dict", "spaces": 3}},
               {**normalised, "normalization": 4}, {**normalised, "input_space": {"spaces": {"a": {"shape": 3}}}})  # fmt: skip
    for description in hostile:
        list(faults_of(description))
    assert list(faults_of(as_current(OLD))) == []


@pytest.mark.slow
def test_a_runs_old_description_is_repaired_when_it_is_read(root, tmp_path):
    """The journal keeps the order in which the keys were written; only the reader of format 1 lost it."""
    copied = Root(tmp_path / "copied")
    shutil.copytree(root.find("own").path, copied.runs_folder / "own")
    run = copied.find("own")
    first, rest = run.journal_file.read_bytes().split(b"\n", 1)
    changed = decode_record(first) | {"policy": OLD}
    run.journal_file.write_bytes(numbered_line(encode_record(changed), 1) + rest)
    assert runs_described_wrongly(copied) == ["own"]
    assert ["own" in finding.found for finding in doctor.examine(copied.path) if finding.what == "runs"] == [True]
    policy = policy_of(run, "best")
    assert policy.description["format"] == 2
    assert [spec.name for spec in signature_of(policy.description).inputs.inputs] == ["z", "a"]


@pytest.mark.slow
def test_a_champion_of_the_old_form_is_stored_again(root, own_root):
    shutil.copytree(
        root.path,
        own_root,
        ignore=shutil.ignore_patterns("mlflow.db*", "artifacts", "registry", "delivered.json", "served"),
    )
    own = Root(own_root)
    first = promote(own.find("own"), "tiny", gate=GATE)
    registry = ModelRegistry(own)
    old = registry.version("tiny", first.version)
    registry.client.delete_logged_model_tag(old.model_id, DIGEST_TAG)
    registry.client.delete_model_version_tag("tiny", "1", DIGEST_TAG)
    assert [item.version for item in old_models(own)] == [1]
    told = []
    again = promote(own.find("own"), "tiny", gate=GATE, notify=told.append)
    assert (again.promoted, again.version, again.was_known) == (True, 2, True)
    assert "storing the same policy again" in " ".join(told)
    champion = registry.by_alias("tiny", "champion")
    assert champion.version == 2
    assert champion.model_id != old.model_id
    assert champion.tags[DIGEST_TAG] == registry.client.get_logged_model(champion.model_id).tags[DIGEST_TAG]
    assert [event.kind for event in registry.history("tiny")] == ["promoted", "stored again"]
    assert promote(own.find("own"), "tiny", gate=GATE).version == 2
    assert not evaluate_champion(own, "tiny", episodes=30, moment="monday", false_alarm_rate=1e-6).degraded


@pytest.mark.slow
def test_a_policy_that_would_act_otherwise_is_not_promoted(root, monkeypatch):
    """As if the code of the agent had changed since, or the reader did something else than training."""
    from rltrack.agents.exported_policy import ExportedPolicy

    original = ExportedPolicy.predict
    monkeypatch.setattr(
        ExportedPolicy, "predict", lambda self, *given, **more: (original(self, *given, **more)[0] * 0, None)
    )
    before = ModelRegistry(root).aliases("tiny")
    with pytest.raises(PolicyNotStorable, match="would act differently once stored"):
        promote(root.find("own"), "another", gate=GATE)
    assert ModelRegistry(root).aliases("tiny") == before
    assert "another" not in ModelRegistry(root).names()
