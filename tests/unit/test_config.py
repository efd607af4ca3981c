from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rltrack.config import FLAT_KEYS, LoopSettings, TrainingConfig
from rltrack.errors import ConfigurationError, MissingExtra
from rltrack.identity import identity, identity_hash
from rltrack.plain_data import apply_overrides, differences, read_yaml, to_yaml
from tests.support.extras import needs

MINIMAL = {"agent": {"algorithm": "PPO"}, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 1000}}

FULL = """
name: cartpole-ppo
seed: 0
agent:
  algorithm: PPO
  policy: MlpPolicy
  hyperparameters: {n_steps: 32, batch_size: 256, learning_rate: {linear: 0.001}}
  device: auto
  threads: 1
environment: {id: CartPole-v1, n_envs: 8, normalize: false}
training:
  strategy: timestep_based
  total_timesteps: 100000
  eval_freq: 10000
  checkpoint_freq: 25000
  memory_limit_mb: null
  convergence_threshold: null
  enable_early_stopping: false
evaluation: {episodes: 20, beside_training: false}
checkpoints: {keep_last: 2, keep_best: 1, store: null, resume: exact}
tracking: {experiment: cartpole, log_interval: 1}
"""


def test_the_designs_example_is_valid(tmp_path):
    (tmp_path / "full.yaml").write_text(FULL)
    config = TrainingConfig.from_file(tmp_path / "full.yaml")
    assert config.environment.n_envs == 8
    (tmp_path / "full.json").write_text(json.dumps(yaml.safe_load(FULL)))
    assert TrainingConfig.from_file(tmp_path / "full.json") == config


def test_resolved_configuration_reads_back_as_itself():
    config = TrainingConfig.from_mapping(MINIMAL)
    assert TrainingConfig.from_mapping(yaml.safe_load(config.to_yaml())) == config


@given(
    seed=st.integers(0, 2**32 - 1),
    total=st.integers(1, 10**12),
    limit=st.none() | st.floats(1e-3, 1e9),
    strategy=st.sampled_from(["timestep_based", "episodic", "mixed", "adaptive"]),
    hyperparameters=st.dictionaries(
        st.text("abc_", min_size=1), st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    ),
)
def test_round_trip(seed, total, limit, strategy, hyperparameters):
    data = {
        **MINIMAL,
        "seed": seed,
        "agent": {"algorithm": "PPO", "hyperparameters": hyperparameters},
        "training": {"strategy": strategy, "total_timesteps": total, "total_episodes": total, "memory_limit_mb": limit},
    }
    config = TrainingConfig.from_mapping(data)
    again = TrainingConfig.from_mapping(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert identity_hash(identity(again)) == identity_hash(identity(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent": {"algoritm": "PPO"}}, "Unknown key 'agent.algoritm'. Did you mean 'algorithm'"),
        ({"agent": {}}, "Key 'agent.algorithm' is required"),
        ({"trainning": {}}, "Did you mean 'training'"),
        (
            {"environment": {"id": "CartPole-v1", "n_envs": 0}},
            "'environment.n_envs': should be greater than or equal to 1, found 0",
        ),
        ({"environment": {"id": "CartPole-v1", "normalize": {"clip_ops": 3}}}, "Did you mean 'clip_obs'"),
        ({"training": {"strategy": "episodic"}}, "needs total_episodes"),
        ({"training": {"total_timesteps": 1e300}}, "training.total_timesteps"),
        ({"training": {"total_timesteps": 100, "patience": -1}}, "training.patience"),
        ({"seed": -1}, "'seed'"),
        ({"name": "../x"}, "not allowed"),
        ({"evaluation": {"beside_training": "often"}}, "beside_training"),
        ({"training": {"total_timesteps": float("inf")}}, "total_timesteps"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ConfigurationError) as caught:
        TrainingConfig.from_mapping({**MINIMAL, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "tags"),
        ("- 1\n- 2", "holds list, not a mapping"),
        ("", "holds NoneType"),
        ("\x00", "YAML"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        TrainingConfig.from_file(tmp_path / "bad.yaml")
    with pytest.raises(ConfigurationError, match="No configuration file"):
        TrainingConfig.from_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="Cannot read"):
        TrainingConfig.from_file(tmp_path)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("agent: {algorithm: PPO}\nenvironment:\n  id: A-v1\nseed: 1\nenvironment: {id: B-v1}\n")
    with pytest.raises(
        ConfigurationError, match=r"the key 'environment' stands in line 2 already, line 5, column 1\.$"
    ):
        TrainingConfig.from_file(file)
    file.write_text(
        "a: &all {x: 1}\nb: {<<: *all, x: 2}\nc: {<<: *all}\nd: &more {<<: *all, x: 3}\ne: {<<: *more, x: 4}\n"
    )
    assert read_yaml(file)["e"] == {"x": 4}, "a merged key may be given another value"


@pytest.mark.parametrize("text", ["3e-05", "3e-4", "1E6", "-2.5e+3", "2.e3"])
def test_numbers_are_those_of_json_and_overrides(tmp_path, text):
    file = tmp_path / "numbers"
    file.write_text(f'{{"plain": {text}, "quoted": "{text}", "list": [{text}]}}')
    found = read_yaml(file)
    assert found == {"plain": float(text), "quoted": text, "list": [float(text)]}
    assert apply_overrides({}, [f"a={text}"]) == {"a": float(text)}
    file.write_text(to_yaml(found))
    assert read_yaml(file) == found


def test_overrides():
    data = apply_overrides(MINIMAL, ["training.total_timesteps=5", "agent.hyperparameters.learning_rate=1e-3", "seed=7",
                                     "environment.normalize=true"])  # fmt: skip
    config = TrainingConfig.from_mapping(data)
    assert config.training.total_timesteps == 5
    assert config.agent.hyperparameters == {"learning_rate": 0.001}
    assert config.seed == 7
    assert config.environment.normalize is True
    assert MINIMAL["training"] == {"total_timesteps": 1000}, "the original is left alone"
    for bad in ("seed", "=3", "seed.x.y=3"):
        with pytest.raises(ConfigurationError):
            apply_overrides({**MINIMAL, "seed": 1}, [bad])


def test_identity_leaves_operational_keys_out():
    one = TrainingConfig.from_mapping(MINIMAL)
    other = TrainingConfig.from_mapping(
        {
            **MINIMAL,
            "name": "x",
            "training": {"total_timesteps": 1000, "memory_limit_mb": 5.0, "max_seconds": 9},
            "tracking": {"experiment": "e"},
            "checkpoints": {"keep_last": 9},
            "agent": {**MINIMAL["agent"], "acceleration": "off"},
        }
    )
    assert identity(one) == identity(other)
    changed = TrainingConfig.from_mapping({**MINIMAL, "seed": 3})
    assert differences(identity(one), identity(changed)) == ["seed: 0 → 3"]


def test_flat_keys_are_unambiguous_and_all_work():
    assert len(set(FLAT_KEYS.values())) == len(FLAT_KEYS)
    settings = LoopSettings.from_flat({"total_timesteps": 10, "eval_episodes": 3, "keep_last": 5, "experiment": "e"})
    assert settings.evaluation.episodes == 3
    assert settings.checkpoints.keep_last == 5
    assert LoopSettings.from_flat({"total_episodes": 5}).training.strategy == "episodic"
    assert LoopSettings.from_flat({"strategy": "ADAPTIVE", "total_timesteps": 5}).training.strategy == "adaptive"


def test_evaluations_by_default():
    assert TrainingConfig.from_mapping(MINIMAL).training.eval_freq == 100
    off = {**MINIMAL, "training": {"total_timesteps": 1000, "eval_freq": None}}
    assert TrainingConfig.from_mapping(off).training.eval_freq is None
    assert LoopSettings.from_flat({"total_timesteps": 1000}).training.eval_freq is None


def test_zoo_presets_are_read_as_data():
    needs("rl_zoo3")
    data = {"agent": {"algorithm": "ppo", "preset": "zoo", "hyperparameters": {"n_steps": 64}},
            "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 5}}  # fmt: skip
    config = TrainingConfig.from_mapping(data)
    assert config.agent.hyperparameters["learning_rate"] == {"linear": 0.001}
    assert config.agent.hyperparameters["n_steps"] == 64, "what is given wins"
    assert config.environment.n_envs == 8
    assert config.training.total_timesteps == 5
    assert config.agent.preset is None, "the resolved configuration stands alone"
    with pytest.raises(ConfigurationError, match="no PPO preset for Nowhere"):
        TrainingConfig.from_mapping({**data, "environment": {"id": "Nowhere-v0"}})
    with pytest.raises(ConfigurationError, match="Allowed: zoo"):
        TrainingConfig.from_mapping({**data, "agent": {"algorithm": "ppo", "preset": "best"}})


def test_zoo_without_the_extra_names_the_command(monkeypatch):
    from rltrack import zoo_presets as zoo

    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'rltrack\[zoo\]'"):
        zoo.zoo_preset("PPO", "CartPole-v1")


def test_every_zoo_preset_translates_without_evaluation():
    needs("rl_zoo3")
    from rltrack import zoo_presets as zoo

    seen = 0
    for file in sorted((zoo.zoo_folder("the test") / "hyperparams").glob("*.yml")):
        for env_id, raw in yaml.safe_load(file.read_text()).items():
            translated = zoo.translate(file.stem.upper(), env_id, raw)
            json.dumps(translated)
            seen += 1
    assert seen >= 266


@pytest.mark.parametrize("text", ["__import__('os').system('x')", "dict(a=open('x'))", "lambda x: x", "nn.ReLU()"])
def test_code_in_a_preset_is_never_run(text):
    from rltrack import zoo_presets as zoo

    raw = {"policy_kwargs": f"dict(a={text})", "n_timesteps": 10}
    with pytest.raises(ConfigurationError, match="as data"):
        zoo.translate("PPO", "X-v0", raw)


@pytest.mark.parametrize(
    ("typed", "name"), [("ppo", "PPO"), ("Sac", "SAC"), ("ppo_mask", "MaskablePPO"), ("mine", "mine")]
)
def test_an_algorithm_has_one_name(typed, name):
    data = {"agent": {"algorithm": typed}, "environment": {"id": "CartPole-v1"}, "training": {"total_timesteps": 10}}
    assert TrainingConfig.from_mapping(data).agent.algorithm == name


def test_runs_of_before_go_on_whatever_was_typed(tmp_path):
    from rltrack.errors import NameTaken
    from rltrack.runs import RunDirectory
    from rltrack.training.session import equal_identity

    ours = {"agent": {"algorithm": "PPO"}, "seed": 0}
    equal_identity(RunDirectory(tmp_path), [ours], {"agent": {"algorithm": "ppo"}, "seed": 0})
    with pytest.raises(NameTaken, match=r"agent\.algorithm: A2C → PPO"):
        equal_identity(RunDirectory(tmp_path), [ours], {"agent": {"algorithm": "a2c"}, "seed": 0})
