"""What parameters of a deployment may name: nothing that the worker's own environment does not list."""

from __future__ import annotations

import inspect
import re
import sys
import types

import gymnasium as gym
import pytest

from rltrack import permissions
from rltrack.agents.exported_policy import ALLOWED_MODULES
from rltrack.config import LoopSettings, NormalizeConfig, Section, TrainingConfig
from rltrack.errors import ConfigurationError, NotAllowed
from rltrack.flows import training
from rltrack.flows.training import check_parameters
from rltrack.journal import Journal
from rltrack.permissions import HARMLESS, KNOWN_WRAPPERS, RULES, Permissions
from rltrack.plain_data import with_values
from rltrack.runs import Root
from rltrack.tracking.destination import Destination, write_destination
from rltrack.tracking.shipper import Shipper

VARIABLES = (
    "RLTRACK_ALLOWED_MODULES", "RLTRACK_ALLOWED_ADDRESSES", "RLTRACK_ALLOWED_VARIABLES", "RLTRACK_ALLOWED_FOLDERS",
    "MLFLOW_TRACKING_URI",
)  # fmt: skip
BASE = {"agent": {"algorithm": "PPO"}, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 100}}
SB3 = "stable_baselines3.common"


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def config(key=None, value=None) -> TrainingConfig:
    return TrainingConfig.from_mapping(with_values(BASE, {} if key is None else {key: value}))


KWARGS, WRAPPERS, URI = "environment.kwargs", "environment.wrappers", "tracking.mlflow_tracking_uri"
HOSTILE = [
    ("environment.id", "os:CartPole-v1", "module 'os'"),
    ("environment.id", "antigravity:CartPole-v1", "module 'antigravity'"),
    ("environment.id", "gymnasium_evil:X-v0", "module 'gymnasium_evil'"),
    ("environment.id", "stable_baselines3.common.utils:X-v0", "RLTRACK_ALLOWED_MODULES"),
    ("environment.id", ":CartPole-v1", "module ''"),
    (WRAPPERS, [{f"{SB3}.monitor.Monitor": {"filename": "/etc/cron.d/x"}}], "Monitor"),
    (WRAPPERS, [f"{SB3}.monitor.Monitor"], "Monitor"),
    (WRAPPERS, [{"gymnasium.wrappers.RecordVideo": {"video_folder": "/tmp/x"}}], "RecordVideo"),
    (WRAPPERS, [{"gymnasium.wrappers.TransformReward": {"func": "print"}}], "TransformReward"),
    (WRAPPERS, [{"subprocess.Popen": {"args": ["touch", "x"]}}], "subprocess.Popen"),
    (WRAPPERS, [{"gymnasium.wrappers.ClipAction": {}, "subprocess.Popen": {"args": "id"}}], "subprocess.Popen"),
    (WRAPPERS, [f"{SB3}.monitor:os.system"], "os.system"),
    (WRAPPERS, [f"{SB3}.utils.os"], "RLTRACK_ALLOWED_MODULES"),
    (WRAPPERS, ["gymnasium.logger.warnings.warn"], "gymnasium.logger.warnings.warn"),
    (WRAPPERS, [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": {"env": "HOME"}}}], "'HOME'"),
    (KWARGS, {"render_mode": {"env": "AWS_SECRET_ACCESS_KEY"}}, "'AWS_SECRET_ACCESS_KEY'"),
    (KWARGS, {"deep": [{"er": {"env": "PREFECT_API_AUTH_STRING"}}]}, "RLTRACK_ALLOWED_VARIABLES"),
    (KWARGS, {"xml_file": "/etc/shadow"}, "'/etc/shadow'"),
    (KWARGS, {"xml_file": "bare.xml"}, "RLTRACK_ALLOWED_FOLDERS"),
    (KWARGS, {"map_name": "../../secret"}, "'../../secret'"),
    (KWARGS, {"rom": "~/x.bin"}, "'~/x.bin'"),
    (KWARGS, {"recordDir": "videos"}, "recordDir"),
    (KWARGS, {"server": "http://169.254.169.254/latest"}, "169.254.169.254"),
    (KWARGS, {"env_id": "os:CartPole-v1"}, "module 'os'"),
    ("agent.hyperparameters", {"policy_kwargs": {"path": "/etc/passwd"}}, "/etc/passwd"),
    ("agent.hyperparameters", {"learning_rate": {"env": "HOME"}}, "'HOME'"),
    ("agent.policy", "os.system", "policy"),
    (URI, "http://evil.example", "http://evil.example"),
    (URI, "sqlite:////etc/x.db", "sqlite:////etc/x.db"),
    (URI, "databricks", "databricks"),
    ("tracking.tensorboard_log_dir", "/var/www", "'/var/www'"),
    ("tracking.tensorboard_log_dir", "../x", "RLTRACK_ALLOWED_FOLDERS"),
    ("tracking.tags", {"rltrack.run_id": "another"}, "rltrack.run_id"),
    ("tracking.tags", {"MLFLOW.user": "root"}, "reserved"),
    ("tracking.tags", {"prefect.other": "x"}, "prefect.other"),
    ("tracking.sinks", ["tensorboard", "os:system"], "module 'os'"),
    ("tracking.sinks", ["rltrack.flows.stack:up"], "RLTRACK_ALLOWED_MODULES"),
    ("checkpoints.store", "s3://evil/x", "s3://evil/x"),
    ("checkpoints.store", "file:///etc", "RLTRACK_ALLOWED_ADDRESSES"),
    ("checkpoints.store", "zip://x::http://evil", "zip://x::http://evil"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "word"), HOSTILE)
def test_a_closed_worker_refuses(key, value, word):
    with pytest.raises(NotAllowed) as caught:
        check_parameters(config(key, value))
    assert word in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, None),
        ("environment.id", "gymnasium:CartPole-v1"),
        (KWARGS, {"render_mode": "rgb_array", "map_name": "4x4", "sutton_barto_reward": True, "size": [3, 4]}),
        (WRAPPERS, ["gymnasium.wrappers.ClipAction", {f"{SB3}.atari_wrappers.WarpFrame": {"width": 84}}]),
        ("agent.hyperparameters", {"ent_coef": "auto_0.1", "policy_kwargs": {"activation_fn": "ReLU"}}),
        ("agent.hyperparameters", {"learning_rate": {"linear": 0.1}, "action_noise": {"normal": 0.1}}),
        ("tracking.experiment", "../../anything: it is a name"),
        ("tracking.tags", {"team": "blue", "rltrack.study": "x", "prefect.flow_run_id": "1"}),
        ("tracking.sinks", ["tensorboard"]),
        ("start_from", "other@best"),
    ],
)
def test_a_closed_worker_trains_what_names_nothing_outside(key, value):
    check_parameters(config(key, value))


def test_everything_is_said_at_once():
    data = with_values(
        BASE, {"environment.id": "os:X-v0", URI: "http://evil", "tracking.tensorboard_log_dir": "/var/www"}
    )
    with pytest.raises(NotAllowed) as caught:
        check_parameters(TrainingConfig.from_mapping(data))
    for word in ("environment.id", URI, "tracking.tensorboard_log_dir", "Allowed: none", "where it runs"):
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4


def leaves(model: type[Section], prefix: str = ""):
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_is_checked_or_known_to_be_harmless():
    keys = set(leaves(TrainingConfig))
    assert keys == HARMLESS | set(RULES)
    assert not HARMLESS & set(RULES)
    assert set(leaves(LoopSettings)) <= keys
    texts = [key for key, field in NormalizeConfig.model_fields.items() if "str" in str(field.annotation)]
    assert texts == ["norm_obs_keys"], "environment.normalize is harmless: it holds numbers, and keys of observations"


def test_an_unknown_key_is_refused():
    with pytest.raises(NotAllowed, match=r"tracking\.brand_new: this key is not known to be harmless"):
        Permissions().check({**config().to_mapping(), "tracking": {"brand_new": 1}})


def test_the_workers_own_mlflow_is_allowed_as_that_and_as_nothing_else(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@mlflow.good.com:5000")
    check_parameters(config(URI, "http://mlflow.good.com:5000"))
    check_parameters(config(URI, "http://MLFLOW.good.com:5000/"))
    for other in ("http://mlflow.good.com:5001", "http://mlflow.good.com:5000/other", "https://mlflow.good.com:5000"):
        with pytest.raises(NotAllowed) as caught:
            check_parameters(config(URI, other))
        assert "pw" not in str(caught.value)
    with pytest.raises(NotAllowed):
        check_parameters(config("checkpoints.store", "http://mlflow.good.com:5000"))


@pytest.mark.parametrize(
    "address",
    [
        "http://good.com.evil/x", "http://good@evil/x", "http://good.com@evil/x", "http://evil/good.com/x", "http://good.com/xy",
        "http://good.com/x/../y", "http://good.com/x/%2e%2e/y", "http://good.com/x?to=http://evil", "http://good.com/x#y",
        "http://good.com\\@evil/x", "http://good.com/x\\..\\y", "http://good.com:81/x", "https://good.com/x", "http://good.com/",
        "http://good.com/x\n", " http://good.com/x", "http://good.com/x/./y", "http://good.com//x", "http:/good.com/x",
        "good.com/x",        "http://GOOD.com.evil/x", "http://ɢood.com/x", "postgresql://good.com/x?host=evil", "s3://bucket2/runs",
        "s3://bucket/runs2",        "file:///srv/runs/../../etc", "file://srv/runs", "sqlite:////srv/other.db",
    ],
)  # fmt: skip
def test_addresses_are_compared_by_their_parts(address):
    allowed = (
        "http://good.com/x",
        "s3://bucket/runs",
        "postgresql://good.com/x",
        "file:///srv/runs",
        "sqlite:////srv/m.db",
    )
    assert not Permissions(addresses=allowed).allows_address(address)


@pytest.mark.parametrize(
    "address",
    ["http://good.com/x", "http://good.com:80/x/y", "HTTP://Good.com/x/", "s3://bucket/runs/a", "file:///srv/runs/a",
     "sqlite:////srv/m.db"],
)  # fmt: skip
def test_what_lies_under_an_allowed_address_is_allowed(address):
    allowed = ("http://u:p@good.com/x", "s3://bucket/runs", "file:///srv/runs", "sqlite:////srv/m.db")
    assert Permissions(addresses=allowed).allows_address(address)


def test_folders_are_compared_where_links_lead(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "open" / "out").symlink_to(tmp_path / "closed")
    (tmp_path / "second").symlink_to(tmp_path / "open")
    for folders in ((str(tmp_path / "open"),), (str(tmp_path / "second"),)):
        allowed = Permissions(folders=folders)
        for inside in ("open", "open/deep/er", "second/a"):
            assert allowed.allows_folder(str(tmp_path / inside))
        for outside in ("closed", "open/out/a", "open/../closed", "opened", "second/out"):
            assert not allowed.allows_folder(str(tmp_path / outside)), outside
        assert allowed.allows_address(f"file://{tmp_path}/open/store")
        assert not allowed.allows_address(f"file://{tmp_path}/open/out/store")
    assert not allowed.allows_folder("\0")


def test_opened(monkeypatch, tmp_path):
    data = with_values(BASE, {
        URI: "http://mlflow/x", "checkpoints.store": "s3://bucket/runs/a", "name": "x", KWARGS: {"key": {"env": "GAME_KEY"}},
        "tracking.tensorboard_log_dir": str(tmp_path / "tb"),
    })  # fmt: skip
    monkeypatch.setenv("RLTRACK_ALLOWED_ADDRESSES", "http://mlflow, s3://bucket/runs")
    monkeypatch.setenv("RLTRACK_ALLOWED_VARIABLES", "OTHER,GAME_KEY")
    monkeypatch.setenv("RLTRACK_ALLOWED_FOLDERS", str(tmp_path))
    check_parameters(TrainingConfig.from_mapping(data))


class Harmless(gym.Wrapper):
    """A wrapper that is defined here."""


def test_in_an_allowed_module_only_its_own_wrappers_can_be_named(monkeypatch):
    module = types.ModuleType("opened_module")
    exec("import gymnasium\nfrom subprocess import Popen\nfrom os import system\nclass Own(gymnasium.Wrapper): pass\n"
         "class Plain: pass\ndef function(env): return env", module.__dict__)  # fmt: skip
    module.Borrowed = Harmless
    monkeypatch.setitem(sys.modules, "opened_module", module)
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "opened_module")
    check_parameters(config(WRAPPERS, ["opened_module.Own", "opened_module:Own"]))
    for name in ("Popen", "system", "Plain", "function", "Borrowed"):
        with pytest.raises(NotAllowed, match="no wrapper that is defined there"):
            check_parameters(config(WRAPPERS, [f"opened_module.{name}"]))
    with pytest.raises(ConfigurationError, match="is a module; name a class"):
        check_parameters(config(WRAPPERS, ["opened_module.gymnasium"]))
    with pytest.raises(NotAllowed, match="opened_modules"):
        check_parameters(config(WRAPPERS, ["opened_modules.Own"]))
    with pytest.raises(NotAllowed, match="write that"):
        check_parameters(config(WRAPPERS, ["opened_module.Borrowed"]))


def test_the_list_of_wrappers_holds_what_it_says():
    from rltrack.agents.wrappers import import_wrapper

    for path in KNOWN_WRAPPERS:
        if path.startswith("sb3_contrib"):
            pytest.importorskip("sb3_contrib")
        found = import_wrapper(path)
        assert issubclass(found, gym.Wrapper)
        assert not re.search(r"func|path|folder|filename|trigger", str(inspect.signature(found).parameters)), path


def test_the_variable_has_one_name_in_two_places():
    assert permissions.ALLOWED_MODULES == ALLOWED_MODULES, (
        "a stored policy brings its own copy of the code that reads it"
    )


def test_a_trial_is_checked_before_anything_of_it_is_built(monkeypatch, tmp_path):
    """To find out whose fault an error is, a sweep builds the environment: not of what is not allowed."""
    from rltrack.runs import Root
    from rltrack.studies import trials
    from rltrack.studies.search import Search
    from rltrack.studies.space import SweepSection

    pytest.importorskip("optuna")
    section = SweepSection.model_validate(
        {"parameters": {"gamma": {"choice": [0.9]}}, "trials": 1, "sampler": "random"}
    )
    search = Search("hostile", Root(tmp_path)).open({**BASE, "environment": {"id": "os:X-v0"}}, section)
    monkeypatch.setattr(trials, "build_agent", lambda config: pytest.fail("it was built"))

    def train(config, hook):
        training.check_parameters(config)

    with pytest.raises(NotAllowed):
        trials.run_trial(search, 0, train)
    assert search.unfinished() == [0], "it is the worker's to open, not the trial's fault"


def test_a_sink_of_a_listed_module_is_allowed(monkeypatch):
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "our.sinks")
    check_parameters(config("tracking.sinks", ["our.sinks:ParquetSink", "mlflow"]))
    with pytest.raises(NotAllowed, match="our_sinks"):
        check_parameters(config("tracking.sinks", ["our_sinks:ParquetSink"]))


def test_delivery_imports_what_the_training_here_named_and_nothing_that_a_configuration_names(tmp_path, monkeypatch):
    """A configuration may have been fetched with its run; delivering what was left behind reads it, for its words only."""
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = Root().create("fetched", "")
    journal = Journal(run.journal_file)
    journal.note("configuration", run_id="fetched", identity={}, agent={})
    journal.close()
    run.write_config({"tracking": {"sinks": ["planted:Sink"], "video": False}})
    shipper = Shipper(run)
    assert [route.name for route in shipper._routes] == ["tensorboard", "mlflow"]
    assert not (tmp_path / "ran").exists()
    write_destination(run, Destination(sinks=("planted:Sink",)))
    assert [route.name for route in Shipper(run)._routes] == ["planted:Sink"], "it is no sink, and is told as a problem"
    assert (tmp_path / "ran").exists()
