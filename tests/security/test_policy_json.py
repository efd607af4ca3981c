"""A hostile policy.json: it loads as a policy or is refused in words; it never reaches anything else."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

pytest.importorskip("stable_baselines3")

import gymnasium as gym
from stable_baselines3 import PPO

from rltrack.agents.exported_policy import DESCRIPTION, TENSORS, ExportedPolicy, write_policy
from rltrack.agents.policy_data import find_class
from rltrack.agents.policy_description import describe_policy

WATCHED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "socket.connect", "exec",
           "compile", "import")  # fmt: skip
_seen: list[tuple[str, str]] | None = None


def _hear(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if _seen is not None and (event in WATCHED or writes):
        _seen.append((event, str(arguments[0])))


sys.addaudithook(_hear)  # cannot be taken away again; it hears nothing outside of `watching`


class watching:
    """Collects what the reader does to the machine: programs, pickles, imports, files opened for writing."""

    def __enter__(self):
        global _seen
        _seen = []
        return _seen

    def __exit__(self, *error):
        global _seen
        _seen = None


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A policy's folder, and its description. Built once before anything is watched, so that all is imported."""
    folder = tmp_path_factory.mktemp("policy")
    model = PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=8, batch_size=8, policy_kwargs={"net_arch": [8]}, seed=0)
    weights = {key: value.numpy() for key, value in model.policy.state_dict().items()}
    write_policy(folder, describe_policy(model), weights, None)
    ExportedPolicy.load(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    (tmp_path / DESCRIPTION).write_bytes((good / DESCRIPTION).read_bytes())
    (tmp_path / TENSORS).write_bytes((good / TENSORS).read_bytes())
    return tmp_path


def described(folder) -> dict:
    return json.loads((folder / DESCRIPTION).read_text())


def refused(folder, text, match=None):
    (folder / DESCRIPTION).write_bytes(text if isinstance(text, bytes) else text.encode())
    before = set(sys.modules)
    with watching() as seen, pytest.raises(ValueError, match=match):
        ExportedPolicy.load(folder)
    assert [event for event in seen if event[0] != "import"] == []
    assert {
        name for name in set(sys.modules) - before if not name.startswith(("torch.", "stable_baselines3."))
    } == set()


POPEN = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.Popen"
"""torch hands on a process starter, as it hands on much of what it imports."""

CLASSES = (
    POPEN,
    "torch.distributed._tensor.import_module",
    "torch.utils.cpp_extension.load_inline",
    "torch.utils.cpp_extension.subprocess.Popen",
    "torch.hub.os.system",
    "torch._inductor.runtime.compile_tasks.subprocess.Popen",
    "torch.distributed.elastic.multiprocessing.api.SubprocessHandler",
    "torch.serialization.load",
    "torch.load",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.ReLU",
    "torch.optim.lbfgs.LBFGS",
    "stable_baselines3.common.monitor.Monitor",
    "stable_baselines3.common.save_util.load_from_pkl",
    "stable_baselines3.common.policies.BasePolicy.load",
    "stable_baselines3.common.vec_env.subproc_vec_env.SubprocVecEnv",
    "sb3_contrib.common.utils.os.system",
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.__import__",
    "antigravity.fly",
    "",
    ".",
    "os",
    "..os.system",
    "torch.nn.modules.activation.ReLU.__init__.__globals__",
    "torch.nn.modules.activation. ReLU",
    "tоrch.nn.modules.activation.ReLU",  # a Cyrillic letter
)


@pytest.mark.parametrize("path", CLASSES)
@pytest.mark.parametrize("where", ["policy_class", "activation_fn", "features_extractor_kwargs"])
def test_names_that_are_on_no_list(folder, path, where):
    data = described(folder)
    if where == "policy_class":
        data["policy_class"] = path
    elif where == "activation_fn":
        data["policy_kwargs"]["activation_fn"] = {"$class": path}
    else:
        data["policy_kwargs"]["features_extractor_kwargs"] = {"deep": [{"$tuple": [{"$class": path}]}]}
    refused(folder, json.dumps(data))


BOX = {"type": "Box", "shape": [4], "dtype": "float32", "low": -1.0, "high": 1.0}
CHANGES = {
    "a process by way of torch": {"policy_kwargs": {"features_extractor_class": {"$class": POPEN}}},
    "a class that is no policy": {"policy_class": "torch.nn.modules.activation.ReLU"},
    "an extractor instead of a policy": {"policy_class": "stable_baselines3.common.torch_layers.FlattenExtractor"},
    "a text as class": {"policy_class": 7},
    "a class that is a mapping": {"policy_class": {"$class": "os.system"}},
    "an activation that is an optimizer": {"policy_kwargs": {"activation_fn": {"$class": "torch.optim.adam.Adam"}}},
    "an extractor that is an activation": {
        "policy_kwargs": {"features_extractor_class": {"$class": "torch.nn.modules.activation.ReLU"}}
    },
    "an argument that the class does not take": {"policy_kwargs": {"command": "id"}},
    "an argument that is given elsewhere": {"policy_kwargs": {"lr_schedule": 1}},
    "the space among the arguments": {"policy_kwargs": {"observation_space": BOX}},
    "self among the arguments": {"policy_kwargs": {"self": 1}},
    "a marker that is unknown": {"policy_kwargs": {"net_arch": {"$call": "os.system"}}},
    "a marker beside another key": {"policy_kwargs": {"net_arch": {"$class": "os.system", "x": 1}}},
    "a tuple that is none": {"policy_kwargs": {"net_arch": {"$tuple": "ab"}}},
    "a layer of a million million units": {"policy_kwargs": {"net_arch": [10**12]}},
    "a layer that is just too large": {"policy_kwargs": {"net_arch": [4096, 4096, 4096]}},
    "a negative layer": {"policy_kwargs": {"net_arch": [-5]}},
    "no end of layers": {"policy_kwargs": {"net_arch": [64] * 5000}},
    "a layer that is a text": {"policy_kwargs": {"net_arch": ["8"]}},
    "a number that is none": {"policy_kwargs": {"log_std_init": float("nan")}},
    "an infinite number": {"policy_kwargs": {"log_std_init": float("inf")}},
    "arguments that are a list": {"policy_kwargs": [1]},
    "no arguments": {"policy_kwargs": None},
    "an observation of a million million numbers": {"observation_space": {**BOX, "shape": [10**6, 10**6]}},
    "an observation just too large for memory": {"observation_space": {**BOX, "shape": [10**7]}, "input_space": BOX},
    "no end of actions": {"action_space": {"type": "Discrete", "n": 10**15, "start": 0}},
    "ten million actions": {"action_space": {"type": "Discrete", "n": 10**7, "start": 0}},
    "actions of no kind": {"action_space": {"type": "os.system"}},
    "a space that is a text": {"input_space": "Box"},
    "a dtype that is an object": {"input_space": {**BOX, "dtype": "object"}},
    "a dtype with fields": {"input_space": {**BOX, "dtype": [["a", "O"]]}},
    "a newer format": {"format": 99},
    "no format at all": {"format": None},
    "a format of nought": {"format": 0},
    "a format that is true": {"format": True},
    "a format that is a text": {"format": "2"},
    "normalisation with more to it": {"normalization": {"epsilon": 1e-8, "clip": 10.0, "clip_fn": "os.system"}},
    "normalisation by text": {"normalization": {"epsilon": "a", "clip": 1}},
    "normalisation by nothing": {"normalization": {"epsilon": 0, "clip": 0}},
    "recurrent, and is not": {"recurrent": True},
    "masked, and is not": {"masked": True},
    "a schedule, and takes one": {"takes_schedule": False},
    "a flag that is a number": {"masked": 0},
    "an unknown key": {"extra": 1},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_descriptions_that_ask_for_something_else(folder, change):
    refused(folder, json.dumps(described(folder) | change), match=r"polic|Policy")


def test_a_shell_command_by_way_of_torch(folder, tmp_path):
    """The key of a dictionary becomes the command: so it ran on `rltrack evaluate-champion`."""
    ran = tmp_path / "ran"
    for description, spaces in ((1, {f"touch {ran}": BOX}), (2, [[f"touch {ran}", BOX]])):
        extractor = {"features_extractor_class": {"$class": POPEN}, "features_extractor_kwargs": {"shell": True}}
        hostile = {"format": description, "policy_kwargs": extractor}
        data = described(folder) | hostile | {"observation_space": {"type": "Dict", "spaces": spaces}}
        refused(folder, json.dumps(data), match=r"RLTRACK_ALLOWED_MODULES=torch\.distributed\.elastic")
    assert not ran.exists()


def test_a_missing_key(folder):
    whole = described(folder)
    for key in whole:
        refused(folder, json.dumps({name: value for name, value in whole.items() if name != key}), match="missing")


TEXTS = {
    "nothing": b"",
    "half of it": b'{"format": 2, "algo',
    "no mapping": b"[]",
    "null": b"null",
    "bytes": bytes(range(256)),
    "a pickle": b"cposix\nsystem\n(S'id'\ntR.",
    "a nesting without end": b"[" * 100_000,
    "mappings without end": b'{"format":' * 50_000,
    "a number of many digits": b'{"format": ' + b"9" * 10_000 + b"}",
    "NUL bytes": b"\x00" * 100,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_what_is_no_description(folder, text):
    refused(folder, text)


def test_arguments_that_are_nested_without_end(folder):
    text = json.dumps(described(folder)).replace('"net_arch": [8]', '"net_arch": ' + "[" * 500 + "]" * 500)
    refused(folder, text, match="deep")


def test_a_class_that_an_allowed_module_only_passes_on(folder, monkeypatch):
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "tests.support")
    for name in ("Popen", "np", "gym", "BOX", "OddEnv", "FlattenExtractor", "image_and_vector", "nothing", "__doc__"):
        with pytest.raises(ValueError, match=r"RLTRACK|cannot be imported|not a torch module"):
            find_class(f"tests.support.policies.{name}")
    with pytest.raises(ValueError, match="cannot be imported"):
        find_class("tests.support.policies.OwnExtractor.Inner")
    data = described(folder)
    data["policy_class"] = "tests.support.policies.OwnExtractor"
    refused(folder, json.dumps(data), match="none of Stable-Baselines3's policies")
    data["policy_class"] = "stable_baselines3.common.policies.ActorCriticPolicy"
    data["policy_kwargs"]["features_extractor_class"] = {"$class": "tests.support.policies.OwnExtractor"}
    (folder / DESCRIPTION).write_text(json.dumps(data))
    assert ExportedPolicy.load(folder).policy.features_extractor.__class__.__name__ == "OwnExtractor"


def test_a_module_is_not_imported_before_it_is_allowed(tmp_path, monkeypatch, folder):
    package = tmp_path / "hostile_package"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in ("hostile_package.Policy", "hostile_package.inner.Policy"):
        data = described(folder) | {"policy_class": path}
        refused(folder, json.dumps(data), match="RLTRACK_ALLOWED_MODULES=hostile_package")
    monkeypatch.setenv("RLTRACK_ALLOWED_MODULES", "hostile_packag, hostile, package, hostile_package.other")
    refused(folder, json.dumps(described(folder) | {"policy_class": "hostile_package.Policy"}))
    assert not (tmp_path / "ran").exists()


TENSOR_CHANGES = {
    "one more": lambda t: t | {"weights/more": np.zeros(3, np.float32)},
    "one less": lambda t: dict(list(t.items())[1:]),
    "none": lambda t: {},
    "another shape": lambda t: t | {"weights/action_net.bias": np.zeros(7, np.float32)},
    "an unknown kind": lambda t: t | {"other/x": np.zeros(3, np.float32)},
    "statistics of nobody": lambda t: t | {"statistics/mean/": np.zeros(4), "statistics/var/": np.ones(4)},
    "statistics without a variance": lambda t: t | {"statistics/mean/": np.zeros(4)},
    "a shape without elements": lambda t: t | {"weights/huge": np.zeros((10**12, 0), np.float32)},
}


@pytest.mark.parametrize("change", TENSOR_CHANGES.values(), ids=TENSOR_CHANGES.keys())
def test_tensors_that_do_not_belong(folder, change):
    save_file(change(load_file(folder / TENSORS)), folder / TENSORS)
    refused(folder, (folder / DESCRIPTION).read_bytes(), match=r"polic|Policy")


def test_statistics_of_another_shape(folder):
    data = described(folder) | {"normalization": {"epsilon": 1e-8, "clip": 10.0}}
    tensors = load_file(folder / TENSORS)
    for value in (np.zeros(5), np.zeros((4, 4)), np.zeros(4, np.int64)):
        save_file(tensors | {"statistics/mean/": value, "statistics/var/": value}, folder / TENSORS)
        refused(folder, json.dumps(data), match="statistics")


def test_tensors_that_are_no_tensors(folder):
    for text in (b"", b"\x80\x04K\x01.", b"\xff" * 100, (folder / TENSORS).read_bytes()[:200]):
        (folder / TENSORS).write_bytes(text)
        refused(folder, (folder / DESCRIPTION).read_bytes(), match="cannot be read")


# ---- anything at all ----


def places(tree, path=()):
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def replaced(tree, path, value):
    if not path:
        return value
    copied = copy.copy(tree)
    copied[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copied


NAMES = st.sampled_from(
    [*CLASSES, "torch.nn.modules.activation.ReLU", "stable_baselines3.common.torch_layers.NatureCNN"]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 70), st.floats(), st.text(max_size=8), NAMES,
    NAMES.map(lambda name: {"$class": name}), st.sampled_from([[], {}, {"$tuple": []}, 10**30, "inf", "-inf", "float64"]),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["$class", "$tuple", "type", "spaces", "a", "n"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def acts_or_is_refused(folder, good):
    unchanged = json.loads((good / DESCRIPTION).read_text())
    before = set(sys.modules)
    with watching() as seen:
        try:
            policy = ExportedPolicy.load(folder)
        except ValueError:
            policy = None
    allowed = ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy")
    assert [event for event in seen if event[0] != "import"] == []
    assert all(name.partition(".")[0] in allowed for name in set(sys.modules) - before)
    if policy is None:
        return
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    if policy.description == unchanged:
        assert np.array_equal(policy.predict(observations)[0], ExportedPolicy.load(good).predict(observations)[0])
    elif policy.observation_space.shape == (4,) and policy.description["input_space"] == unchanged["observation_space"]:
        assert len(policy.predict(observations)[0]) == 5


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_part_replaced_by_anything(good, folder, data):
    tree = json.loads((good / DESCRIPTION).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        tree = replaced(tree, data.draw(st.sampled_from(list(places(tree)))), data.draw(TREES))
    (folder / DESCRIPTION).write_text(json.dumps(tree))
    acts_or_is_refused(folder, good)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.binary(max_size=12), st.sampled_from(["insert", "overwrite", "cut"]))
def test_any_bytes_anywhere(good, folder, position, noise, how):
    text = (good / DESCRIPTION).read_bytes()
    rest = {"insert": text[position:], "overwrite": text[position + len(noise) :], "cut": b""}[how]
    (folder / DESCRIPTION).write_bytes(text[:position] + noise + rest)
    acts_or_is_refused(folder, good)


@pytest.mark.slow
def test_reading_needs_nothing_of_rltrack(good, tmp_path):
    """The files are copied into each model; there they import each other, and nothing of rltrack."""
    import subprocess

    from rltrack.agents import exported_policy, policy_data, policy_spaces

    for module in (exported_policy, policy_data, policy_spaces):
        (tmp_path / Path(module.__file__).name).write_bytes(Path(module.__file__).read_bytes())
    code = (
        "import sys; sys.modules['rltrack'] = None\n"
        "from exported_policy import ExportedPolicy\n"
        f"policy = ExportedPolicy.load({str(good)!r})\n"
        "import numpy as np; print(policy.predict(np.zeros((2, 4), np.float32))[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""})
    assert done.stdout.strip() == "(2,)", done.stderr
