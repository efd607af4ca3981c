"""The configuration of one training: read from YAML, validated, frozen. Long because it defines and describes every key.

Keys are of two kinds. Those that change a single bit of the result make up the run's *identity*; the others (limits,
tracking, retention) are *operational* and may change from one attempt to the next. Configuration is data: nothing in a
file is evaluated, and YAML tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rltrack.algorithms import spelled
from rltrack.episode_limits import EpisodeLimits
from rltrack.errors import ConfigurationError, did_you_mean
from rltrack.plain_data import apply_overrides, merge, read_yaml, to_yaml
from rltrack.secrets import refuse_secrets, shown
from rltrack.validation import validate_section

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SINK = re.compile(r"[a-z][a-z0-9_]*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
DEFAULT_TOTAL_TIMESTEPS = 100_000
"""Budget of a bare ``TrainingLoop()`` to which neither a strategy nor a budget is given, in env steps."""

MAX_EVAL_ENVS = 10
"""Parallel environments of an evaluation, unless it names a number."""

DEFAULT_SINKS = ("tensorboard", "mlflow")
StrategyName = Literal["timestep_based", "episodic", "mixed", "adaptive"]
BUDGETS: dict[str, tuple[str, ...]] = {
    "timestep_based": ("total_timesteps",),
    "episodic": ("total_episodes",),
    "mixed": ("total_timesteps", "total_episodes"),
    "adaptive": ("total_timesteps",),
}
"""The budgets that each strategy needs."""


def _operational(default: Any, **kwargs: Any) -> Any:
    """Declare a key that does not change the result, so that it may change between two attempts of one run."""
    return Field(default, json_schema_extra={"operational": True}, **kwargs)


class Section(BaseModel):
    """A part of the configuration: frozen, and with no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class AgentConfig(Section):
    """The algorithm and its settings."""

    algorithm: str = Field(
        description="An algorithm of Stable-Baselines3, sb3-contrib or SBX, such as PPO or TQC; or `package.module:Class`."
    )
    policy: str = Field(
        "MlpPolicy", description="Policy class: MlpPolicy, CnnPolicy, MultiInputPolicy, …; or `package.module:Class`."
    )
    preset: Literal["zoo"] | None = Field(
        None, description="'zoo' starts from rl_zoo3's tuned settings for this algorithm and environment."
    )
    hyperparameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of the algorithm. A schedule is written {linear: 0.001} (falls to 0 over the budget). "
        "`package.module:Name` stands for a class or function, {package.module:Name: {argument: value}} for what it returns.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(
        1, ge=1, le=1024, description="Torch threads. One is fastest for small networks, and reproducible."
    )
    build_threads: int | None = _operational(
        None,
        ge=1,
        le=1024,
        description="Torch threads while the model is made; its first weights depend on them. Omitted: as `threads`, or as in the "
        "script.",
    )
    acceleration: Literal["auto", "off"] = _operational(
        "auto",
        description="auto: faster code where the result is the same bit for bit (`rltrack.accelerate`); off: none.",
    )

    @field_validator("acceleration", mode="before")
    @classmethod
    def _off_in_yaml(cls, value: Any) -> Any:
        """YAML reads an ``off`` without quotes as false."""
        return "off" if value is False else value

    @field_validator("algorithm")
    @classmethod
    def _own_spelling(cls, name: str) -> str:
        """One algorithm has one name, so that ``ppo`` and ``PPO`` are the same run; an unknown one is refused later."""
        return spelled(name)


class NormalizeConfig(Section):
    """Running normalisation of observations and rewards (VecNormalize)."""

    norm_obs: bool = True
    norm_reward: bool = True
    clip_obs: float = Field(10.0, gt=0)
    clip_reward: float = Field(10.0, gt=0)
    gamma: float | None = Field(None, ge=0, le=1, description="Omitted: the agent's gamma.")
    epsilon: float = Field(1e-8, gt=0)
    norm_obs_keys: list[str] | None = Field(
        None,
        json_schema_extra={"later": True},
        description="Dict observations: the keys to normalise. Omitted: all.",
    )


class EnvironmentConfig(Section):
    """The training environments."""

    id: str = Field(
        min_length=1,
        description="Gymnasium id; `package:Env-v0` imports the package first. Or `package.module:Name`: a class, or a function "
        "that returns an environment.",
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments of the environment.")
    n_envs: int = Field(1, ge=1, le=4096, description="Parallel environments.")
    vectorization: Literal["dummy", "subproc", "auto"] = Field(
        "dummy",
        description="dummy: all in this process; subproc: each in a separate process; auto: measure once which is faster, and "
        "keep that choice.",
    )
    restart_crashed: bool = Field(
        False,
        json_schema_extra={"later": True},
        description="subproc: restart only a crashed environment, its episode truncated, instead of resuming from the last "
        "version. The run is inexact.",
    )
    wrappers: list[str | dict[str, dict[str, Any]]] = Field(
        default_factory=list, description="`package.module:Class`, or {package.module:Class: {argument: value}}."
    )
    wrappers_inside_monitor: bool | None = Field(
        None,
        json_schema_extra={"later": [None, False]},
        description="Whether the wrappers are inside Monitor, which counts returns and lengths, so that a TimeLimit or a changed "
        "reward counts. Omitted: true for a new run. False: they are around Monitor, as in rl_zoo3 and in runs started before this "
        "key existed.",
    )
    info_keywords: list[str] = Field(
        default_factory=list,
        json_schema_extra={"later": True},
        description="Keys of the info at an episode's end that SB3's Monitor puts into the info's `episode`.",
    )
    monitor_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        json_schema_extra={"later": True},
        description="Further arguments of SB3's Monitor: allow_early_resets, reset_keywords.",
    )
    vec_env_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        json_schema_extra={"later": True},
        description="Arguments of the vectorised environment; for subproc {start_method: fork}.",
    )
    normalize: bool | NormalizeConfig = Field(False, description="Running normalisation; true for the defaults.")
    frame_stack: int | None = Field(None, ge=2, le=64, description="Number of stacked observations.")


class TrainingSection(Section):
    """The budget of training, and the marks for evaluations and checkpoints."""

    strategy: StrategyName = Field("timestep_based", description="The unit of the budget and the marks.")
    total_timesteps: int | None = Field(None, ge=1, le=10**12, description="Budget in env steps.")
    total_episodes: int | None = Field(None, ge=1, le=10**12, description="Budget in finished episodes.")
    max_seconds: float | None = _operational(
        None, gt=0, description="Cap on the time spent training, in seconds, added up over attempts."
    )
    eval_freq: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Env steps between evaluations (episodes for episodic). Omitted: a tenth of the budget, or a twentieth where "
        "evaluations can end training; null: none.",
    )
    eval_freq_episodes: int | None = Field(None, ge=1, le=10**12, description="Mixed: episodes between evaluations.")
    checkpoint_freq: int | None = _operational(
        None, ge=1, le=10**12, description="Env steps between checkpoints (episodes for episodic)."
    )
    checkpoint_freq_episodes: int | None = _operational(
        None, ge=1, le=10**12, description="Mixed: episodes between checkpoints."
    )
    checkpoint_seconds: float | None = _operational(
        60.0, gt=0, description="Seconds between checkpoints, in addition to checkpoint_freq; null for none."
    )
    memory_limit_mb: float | None = _operational(
        None, gt=0, description="Stop with a checkpoint above this resident memory of training and its workers, in MB."
    )
    convergence_threshold: float | None = Field(
        None, description="Stop once the lower end of the evaluation's confidence interval reaches this return."
    )
    enable_early_stopping: bool = Field(False, description="Stop when evaluations no longer improve.")
    patience: int = Field(10, ge=1, description="Early stopping: evaluations without improvement before stopping.")
    min_improvement: float = Field(0.01, ge=0, description="Early stopping: smallest gain that counts, in reward.")

    @model_validator(mode="after")
    def _budget_matches_strategy(self) -> Self:
        missing = [key for key in BUDGETS[self.strategy] if getattr(self, key) is None]
        if missing:
            raise ValueError(f"strategy '{self.strategy}' needs {' and '.join(missing)}; set {missing[0]}")
        if self.strategy != "mixed":
            for key in ("eval_freq_episodes", "checkpoint_freq_episodes"):
                if getattr(self, key) is not None:
                    plain = key.removesuffix("_episodes")
                    raise ValueError(f"{key} belongs to strategy 'mixed'; with '{self.strategy}' set {plain}")
        return self

    @property
    def needs_evaluation(self) -> bool:
        """Whether something in this section cannot work without evaluations."""
        return self.strategy == "adaptive" or self.convergence_threshold is not None or self.enable_early_stopping

    @property
    def evaluates(self) -> bool:
        """Whether evaluations are asked for."""
        return self.eval_freq is not None or self.eval_freq_episodes is not None

    def with_evaluations(self, per_budget: int) -> TrainingSection:
        """Return this section with `per_budget` evaluations over the budget, unless it names its own frequency."""
        if self.evaluates:
            return self
        budget = self.total_episodes if self.strategy == "episodic" else self.total_timesteps
        assert budget is not None, "checked by the validator"
        return self.model_copy(update={"eval_freq": max(1, budget // per_budget)})


class EvaluationSection(Section):
    """How the agent is evaluated: separate environments, fixed seeds, raw returns."""

    episodes: int = Field(20, ge=1, le=100_000, description="Episodes of each evaluation.")
    deterministic: bool = Field(True, description="Act by the policy's mode rather than by a sample.")
    n_envs: int | None = Field(None, ge=1, le=256, description="Parallel environments; omitted: up to 10.")
    beside_training: bool = Field(
        False,
        description="Evaluate in a separate process in parallel with training; a result takes effect when the next evaluation "
        "is due, so that the run does not depend on the machine's speed.",
    )

    max_steps_per_episode: int | None = Field(
        None,
        ge=1,
        le=10**9,
        json_schema_extra={"later": True},
        description="Env steps after which an episode is cut; its return counts as it is. Omitted: 120,000 in environments without "
        "max_episode_steps of their own.",
    )
    max_seconds: float | None = _operational(
        None,
        gt=0,
        description="Cap on one evaluation, in seconds; episodes running then are cut. Omitted: 600 as long as no "
        "episode has ended.",
    )

    @property
    def limits(self) -> EpisodeLimits:
        """The limits of an evaluation."""
        return EpisodeLimits(self.max_steps_per_episode, self.max_seconds)

    @property
    def parallel(self) -> int:
        """Number of environments to play in."""
        return self.n_envs or min(self.episodes, MAX_EVAL_ENVS)


class CheckpointsSection(Section):
    """Which versions are kept."""

    keep_last: int = _operational(2, ge=1, le=10_000, description="Newest resumable versions to keep.")
    keep_best: int = _operational(1, ge=0, le=10_000, description="Best versions by evaluation to keep.")
    keep_every: int | None = _operational(
        None, ge=1, le=10**12, description="Env steps: keep one resumable version of each such interval permanently."
    )
    cut_freq: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Env steps: at these marks end all episodes and rebuild the environments, and checkpoint only there. For "
        "simulators whose state can be neither captured nor replayed. It changes learning; keep 20 episodes or more between two.",
    )
    probe: bool = _operational(
        True, description="Build two scratch environments at the start, to test how their state can be captured."
    )
    store: str | None = _operational(
        None,
        pattern=r"^[a-z][a-z0-9+.-]*://.+",
        description="A remote copy of the run, by any fsspec URL: s3://bucket/prefix, file:///mnt/runs. Another machine can resume "
        "from it. Needs RLTRACK_SIGNING_KEY.",
    )
    resume: Literal["exact", "strict"] = _operational(
        "exact",
        description="'strict' refuses to resume where the result could differ; 'exact' resumes and labels the run.",
    )
    on_failure: Literal["stop", "continue"] = _operational(
        "stop", description="Whether a checkpoint that cannot be written stops training, or is a warning."
    )


class TrackingSection(Section):
    """Where metrics are delivered."""

    experiment: str | None = _operational(None, max_length=500, description="MLflow experiment; omitted: rltrack.")
    log_interval: int = _operational(
        1, ge=1, description="Log every N iterations (on-policy) or every N finished episodes (off-policy)."
    )
    mlflow_tracking_uri: str | None = _operational(None, description="Omitted: MLFLOW_TRACKING_URI, or the root's own.")
    tensorboard_log_dir: str | None = _operational(None, description="Omitted: tensorboard/ in the run's folder.")
    tags: dict[str, str] = _operational({}, description="Further tags of the run in MLflow, to group and find runs by.")
    sinks: list[str] = _operational(
        list(DEFAULT_SINKS),
        description="Where numbers are delivered: mlflow, tensorboard, or `package.module:Name`, a sink of your own. Promotion "
        "needs mlflow.",
    )
    video: bool = _operational(
        True,
        description="Record a video of the best policy after training, if the environment can be rendered. Needs the extra "
        "'video'.",
    )

    @field_validator("sinks")
    @classmethod
    def _sinks_are_named(cls, names: list[str]) -> list[str]:
        for name in names:
            if not _SINK.fullmatch(name):
                raise ValueError(f"{shown(name)} names no sink; write mlflow, tensorboard, or package.module:Name")
        if len(set(names)) < len(names):
            raise ValueError("a sink is named twice")
        return names


class LoopSettings(Section):
    """The settings of a TrainingLoop, without agent and environment."""

    training: TrainingSection
    evaluation: EvaluationSection = EvaluationSection()
    checkpoints: CheckpointsSection = CheckpointsSection()
    tracking: TrackingSection = TrackingSection()

    @classmethod
    def from_flat(cls, options: Mapping[str, Any]) -> Self:
        """Build from flat keywords, such as ``{"strategy": "adaptive", "total_timesteps": 100_000}``.

        Raises:
            ConfigurationError: If a keyword is unknown (the nearest right one is named) or a value is not allowed.
        """
        tree: dict[str, Any] = {"training": {}}
        for key, value in options.items():
            if key not in FLAT_KEYS:
                raise ConfigurationError(
                    f"Unknown option '{key}'.{did_you_mean(key, FLAT_KEYS)} Allowed: {', '.join(sorted(FLAT_KEYS))}."
                )
            section, field = FLAT_KEYS[key]
            tree.setdefault(section, {})[field] = getattr(value, "value", value)
        training = tree["training"]
        if not training.keys() & {"strategy", "total_timesteps", "total_episodes"}:
            training["total_timesteps"] = DEFAULT_TOTAL_TIMESTEPS
        training.setdefault("strategy", _strategy_of(training))
        if isinstance(training["strategy"], str):
            training["strategy"] = training["strategy"].lower()
        return validate_section(cls, tree, "options")


def _strategy_of(training: Mapping[str, Any]) -> str:
    """Return the strategy that follows from the given budget."""
    if training.get("total_timesteps") is None and training.get("total_episodes") is not None:
        return "episodic"
    return "timestep_based"


_RENAMED = {("evaluation", "episodes"): "eval_episodes", ("evaluation", "deterministic"): "eval_deterministic",
            ("evaluation", "n_envs"): "n_eval_envs", ("evaluation", "max_seconds"): "eval_max_seconds",
            ("evaluation", "max_steps_per_episode"): "eval_max_steps_per_episode"}  # fmt: skip
_SECTIONS: dict[str, type[Section]] = {
    "training": TrainingSection,
    "evaluation": EvaluationSection,
    "checkpoints": CheckpointsSection,
    "tracking": TrackingSection,
}
_OWN_KEYWORDS = {("checkpoints", "resume"), ("checkpoints", "store"), ("evaluation", "beside_training")}
FLAT_KEYS: dict[str, tuple[str, str]] = {
    _RENAMED.get((section, field), field): (section, field)
    for section, model in _SECTIONS.items()
    for field in model.model_fields
    if (section, field) not in _OWN_KEYWORDS
}
"""Maps each flat keyword to section and key."""


class TrainingConfig(LoopSettings):
    """A whole training: agent, environment, budget, evaluation, checkpoints, tracking, seed."""

    name: str | None = _operational(
        None, description="The run's name under the root; omitted: made from algorithm, environment and seed."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of everything random in training.")
    start_from: str | None = Field(
        None, description="RUN@version: start from the weights, optimizer and normalisation of another run's version."
    )
    hooks: list[str | dict[str, dict[str, Any]]] = Field(
        default_factory=list,
        json_schema_extra={"later": True},
        description="Hooks of rltrack and callbacks of Stable-Baselines3, in this order: `package.module:Class`, or "
        "{package.module:Class: {argument: value}}.",
    )
    script_only: list[str] = _operational(
        [],
        description="Written by rltrack for a run from Python: what only its script has and training needs. Such a run can be "
        "evaluated, promoted and served, but not trained from this configuration.",
    )
    agent: AgentConfig
    environment: EnvironmentConfig

    @model_validator(mode="before")
    @classmethod
    def _preset_comes_first(cls, data: Any) -> Any:
        return expand_preset(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _name_is_a_folder_name(self) -> Self:
        if self.name is not None:
            check_run_name(self.name)
        return self

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        refuse_secrets(self.model_dump())
        return self

    @model_validator(mode="after")
    def _evaluations_by_default(self) -> Self:
        if "eval_freq" in self.training.model_fields_set and not self.training.needs_evaluation:
            return self
        per_budget = 20 if self.training.needs_evaluation else 10
        object.__setattr__(self, "training", self.training.with_evaluations(per_budget))
        return self

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], source: str = "configuration") -> TrainingConfig:
        """Validate a nested mapping.

        Raises:
            ConfigurationError: With one line for each error.
        """
        return validate_section(cls, data, source)

    @classmethod
    def from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
        """Read a YAML (or JSON) file and apply ``key=value`` overrides.

        Raises:
            ConfigurationError: If the file cannot be read, is not plain YAML, or is not a valid configuration.
        """
        return cls.from_mapping(apply_overrides(read_yaml(path), overrides), source=str(path))

    def to_mapping(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data, ready for YAML or JSON."""
        return self.model_dump(mode="json", exclude={key for key in ("hooks", "script_only") if not getattr(self, key)})

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML."""
        return to_yaml(self.to_mapping())


def check_run_name(name: str) -> str:
    """Return the name if it can be a folder's name.

    Raises:
        ConfigurationError: If it is empty, too long, has a slash, or starts with a dot.
    """
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise ConfigurationError(
            f"Run name {shown(name)} is not allowed. Use 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter "
            "or digit, and without '..', such as cartpole-ppo; `rltrack runs` lists those that exist."
        )
    return name


def expand_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``agent.preset``'s settings with the given ones, which take precedence; without a preset nothing changes."""
    agent = data.get("agent")
    if not isinstance(agent, Mapping) or agent.get("preset") is None:
        return dict(data)
    if agent["preset"] != "zoo":
        raise ConfigurationError(f"Unknown agent.preset {shown(agent['preset'])}. Allowed: zoo.")
    from rltrack.zoo_presets import zoo_preset

    environment = data.get("environment")
    env_id = environment.get("id") if isinstance(environment, Mapping) else None
    preset = zoo_preset(str(agent.get("algorithm")), str(env_id))
    given = {**data, "agent": {key: value for key, value in agent.items() if key != "preset"}}
    return merge(preset, given)
