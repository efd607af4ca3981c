"""What data from others may name on this machine: modules, addresses, environment variables, folders.

Anyone who reaches the Prefect server can set parameters of a deployment's runs, and anyone who may write to a registry can set
configurations. A worker allows what its own environment lists, and nothing else. Every key of a configuration is listed here,
with its check or as harmless; an unlisted key is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rltrack.errors import NotAllowed

ALLOWED_MODULES, ALLOWED_ADDRESSES = "RLTRACK_ALLOWED_MODULES", "RLTRACK_ALLOWED_ADDRESSES"
ALLOWED_VARIABLES, ALLOWED_FOLDERS = "RLTRACK_ALLOWED_VARIABLES", "RLTRACK_ALLOWED_FOLDERS"
"""Environment variables of a worker, each a comma-separated list."""

KNOWN_MODULES = ("gymnasium", "ale_py", "rltrack.benchmarks.environments")
"""Packages whose import only registers environments."""

KNOWN_WRAPPERS = frozenset(
    f"{module}.{name}"
    for modules, names in (
        ("gymnasium.wrappers gymnasium.wrappers.atari_preprocessing", "AtariPreprocessing"),
        ("gymnasium.wrappers gymnasium.wrappers.common", "Autoreset OrderEnforcing PassiveEnvChecker "
         "RecordEpisodeStatistics TimeLimit"),
        ("gymnasium.wrappers gymnasium.wrappers.rendering", "AddWhiteNoise ObstructView"),
        ("gymnasium.wrappers gymnasium.wrappers.stateful_action", "RepeatAction StickyAction"),
        ("gymnasium.wrappers gymnasium.wrappers.stateful_observation", "DelayObservation FrameStackObservation "
         "MaxAndSkipObservation NormalizeObservation TimeAwareObservation"),
        ("gymnasium.wrappers gymnasium.wrappers.stateful_reward", "NormalizeReward"),
        ("gymnasium.wrappers gymnasium.wrappers.transform_action", "ClipAction DiscretizeAction RescaleAction"),
        ("gymnasium.wrappers gymnasium.wrappers.transform_observation", "AddRenderObservation DiscretizeObservation "
         "DtypeObservation FilterObservation FlattenObservation GrayscaleObservation RescaleObservation ReshapeObservation "
         "ResizeObservation"),
        ("gymnasium.wrappers gymnasium.wrappers.transform_reward", "ClipReward"),
        ("stable_baselines3.common.atari_wrappers", "AtariWrapper ClipRewardEnv EpisodicLifeEnv FireResetEnv MaxAndSkipEnv "
         "NoopResetEnv StickyActionEnv WarpFrame"),
        ("sb3_contrib.common.wrappers", "TimeFeatureWrapper"),
    )
    for module in modules.split()
    for name in names.split()
)  # fmt: skip
"""Wrappers that neither write files nor take functions, by exact name, since their modules contain other classes too."""

_SECTIONS = ("agent", "environment", "training", "evaluation", "checkpoints", "tracking")
HARMLESS = frozenset(
    [
        *("name", "seed", "start_from", "script_only"),  # names of runs, which `Root` checks when it makes a path from them
        *(f"agent.{key}" for key in ("preset", "device", "threads", "build_threads", "acceleration")),  # closed tables; resources
        *(f"environment.{key}" for key in ("n_envs", "vectorization", "restart_crashed", "normalize", "frame_stack",
                                         "wrappers_inside_monitor", "info_keywords")),
        *(f"training.{key}" for key in (
            "strategy", "total_timesteps", "total_episodes", "max_seconds", "eval_freq", "eval_freq_episodes", "checkpoint_freq",
            "checkpoint_freq_episodes", "checkpoint_seconds", "memory_limit_mb", "convergence_threshold", "enable_early_stopping",
            "patience", "min_improvement",
        )),
        *(f"evaluation.{key}" for key in ("episodes", "deterministic", "n_envs", "beside_training",
                                        "max_steps_per_episode", "max_seconds")),
        *(f"checkpoints.{key}" for key in (
            "keep_last", "keep_best", "keep_every", "cut_freq", "probe", "resume", "on_failure",
        )),
        *(f"tracking.{key}" for key in ("experiment", "log_interval", "video")),  # an experiment's folder: `folder_name`
    ]
)  # fmt: skip
"""Keys whose values are numbers, words from closed lists, or names that are checked where they are used."""

_SHARED = ("gymnasium", "stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "numpy")
"""Packages with harmful names too: the user's own use of a wrapper from them does not allow other arguments."""

_RESERVED_TAGS = ("mlflow.", "rltrack.", "prefect.")
_OWN_TAGS = ("rltrack.study", "rltrack.trial", "prefect.flow_run_id", "prefect.flow_run_url", "prefect.deployment")
"""Reserved tags that rltrack itself puts into configurations; a flow overwrites those of Prefect."""

_FILE_WORDS = ("file", "files", "filename", "filepath", "path", "paths", "dir", "directory", "folder", "logfile", "logdir",
               "rom", "xml")  # fmt: skip
_MODULE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_].*")
_ADDRESS = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]*|\[[0-9a-f:.]+\])(?::(\d{1,5}))?((?:/[\w.~+=@,()-]*)*)",
    re.IGNORECASE | re.ASCII,
)
_PORTS = {"http": "80", "https": "443"}
_LOCAL = ("file", "local")

Findings = Iterator[str]


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a worker allows.

    Attributes:
        modules: Modules and packages whose environments, wrappers and sinks may be named.
        addresses: MLflow servers and remote stores: scheme, host and port as they are, and where a path stands, what is under it.
        variables: Environment variables that ``{env: NAME}`` may read.
        folders: Folders in which files may be named.
        wrappers: Further wrappers, by their exact names.
        registering: Further modules that may precede an environment's id, by their exact names.
        tracking_uri: The worker's own MLflow server, which is always allowed.
    """

    modules: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    registering: tuple[str, ...] = ()
    tracking_uri: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Permissions:
        """Read them from the environment variables of this process."""
        listed = {
            name: tuple(part for item in environ.get(name, "").split(",") if (part := item.strip()))
            for name in (ALLOWED_MODULES, ALLOWED_ADDRESSES, ALLOWED_VARIABLES, ALLOWED_FOLDERS)
        }
        return cls(
            modules=listed[ALLOWED_MODULES],
            addresses=listed[ALLOWED_ADDRESSES],
            variables=listed[ALLOWED_VARIABLES],
            folders=listed[ALLOWED_FOLDERS],
            tracking_uri=environ.get("MLFLOW_TRACKING_URI") or None,
        )

    def including(self, configurations: Iterable[Mapping[str, Any]]) -> Permissions:
        """Return these, extended by the modules, wrappers and variables in the user's own configurations."""
        registering, wrappers, variables = list(self.registering), list(self.wrappers), list(self.variables)
        for configuration in configurations:
            section = configuration.get("environment") or {}
            module, colon, _ = str(section.get("id", "")).partition(":")
            registering += [module] if colon else []
            named = [path.replace(":", ".") for path, _ in _wrappers_of(section.get("wrappers") or ())]
            wrappers += [path for path in named if path.partition(".")[0] not in _SHARED]
            variables += _variables_of(section.get("kwargs"))
        return replace(self, registering=tuple(registering), wrappers=tuple(wrappers), variables=tuple(variables))

    def check(
        self,
        configuration: Mapping[str, Any],
        *,
        own: Sequence[Mapping[str, Any]] = (),
        subject: str = "This worker does not allow what the configuration names.",
    ) -> None:
        """Refuse a configuration that names what is not allowed.

        Args:
            configuration: A `TrainingConfig`, or sections of one, as plain data.
            own: The user's own configurations. Their names are allowed, and keys with the same values as theirs.
            subject: First line of the message.

        Raises:
            NotAllowed: With a line for each refused value: the key, what is allowed, which variable allows it.
        """
        allowed = self.including(own)
        trusted = [dict(_keys(item)) for item in own]
        requested = [
            (key, value) for key, value in _keys(configuration) if all(item.get(key) != value for item in trusted)
        ]
        found = list(dict.fromkeys(line for key, value in requested for line in allowed._findings(key, value)))
        if found:
            raise NotAllowed("\n".join([subject, *found]))

    def allows_module(self, module: str) -> bool:
        """Whether a module may be imported: it, or a package that contains it, is on the list."""
        return any(module == item or module.startswith(f"{item}.") for item in self.modules)

    def allows_address(self, address: str) -> bool:
        """Whether an address is on the list, or under one that is."""
        asked = _parsed(address)
        if asked is None:
            return False
        if asked[0] in _LOCAL and not asked[1] and self.allows_folder(_local_path(asked)):
            return True
        return any(_is_under(asked, known) for item in self.addresses if (known := _parsed(_without_user(item))))

    def allows_folder(self, path: str) -> bool:
        """Whether a path, with every symbolic link followed, is in a folder of the list."""
        try:
            asked = Path(path).expanduser().resolve()
            return any(asked.is_relative_to(Path(item).expanduser().resolve()) for item in self.folders)
        except (OSError, RuntimeError, ValueError):  # links in a circle, an unknown user's home, a NUL
            return False

    def _findings(self, key: str, value: Any) -> Findings:
        rule = RULES.get(key)
        if rule is not None:
            if value is not None:
                yield from rule(self, key, value)
        elif key not in HARMLESS:
            yield f"{key}: this key is not known to be harmless in parameters, and cannot be set there."

    def _environment(self, key: str, value: Any) -> Findings:
        module, colon, name = str(value).partition(":")
        # a plain name can be any function of the module; an id, such as Env-v0, is only looked up after the import
        known = () if name.isidentifier() else (*KNOWN_MODULES, *self.registering)
        if colon and module not in known and not self.allows_module(module):
            yield self._refused_module(f"{key} names the module {_quoted(module)}", known)

    def _wrappers(self, key: str, value: Any) -> Findings:
        for path, arguments in _wrappers_of(value):
            plain = path.replace(":", ".")
            is_known = plain in KNOWN_WRAPPERS or plain in self.wrappers
            if not is_known and not self.allows_module(plain.rpartition(".")[0]):
                known = "wrappers of gymnasium and Stable-Baselines3 that neither write files nor take functions"
                yield self._refused_module(f"{key} names the wrapper {_quoted(path)}", (known,))
            yield from self._data(f"{key}.{_cut(path)}", arguments or {})

    def _data(self, key: str, value: Any) -> Findings:
        if isinstance(value, Mapping) and set(value) == {"env"} and isinstance(value["env"], str):
            if value["env"] not in self.variables:
                asked = f"{key} reads the environment variable {_quoted(value['env'])}"
                yield _refused(asked, self.variables, ALLOWED_VARIABLES)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                if _MODULE.fullmatch(str(name)):
                    yield from self._text(key, str(name))
                yield from self._data(f"{key}.{_cut(str(name))}", item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from self._data(key, item)
        elif isinstance(value, str) and value:
            yield from self._text(key, value)

    def _text(self, key: str, value: str) -> Findings:
        """Check a text argument that can be an address, a module, or a file."""
        module = _MODULE.fullmatch(value)
        if "://" in value:
            yield from self._address(key, value)
        elif module is not None and "/" not in value:
            if not self.allows_module(module[1]):
                yield self._refused_module(f"{key} names the module {_quoted(module[1])}", ())
        elif re.search(r"[/\\\0]", value) or value.startswith(("~", ".")) or _is_file_key(key):
            yield from self._folder(key, value)

    def _address(self, key: str, value: str) -> Findings:
        if not self.allows_address(value):
            known = [_shown(item) for item in self.addresses]
            yield _refused(f"{key} names the address {_quoted(_shown(value))}", known, ALLOWED_ADDRESSES)

    def _tracking_uri(self, key: str, value: Any) -> Findings:
        own = self.tracking_uri
        if own is not None:
            ours, asked = _parsed(_without_user(own)), _parsed(value)
            if value == own or (asked is not None and asked == ours):
                return
        yield from self._address(key, str(value))

    def _folder(self, key: str, value: Any) -> Findings:
        if not self.allows_folder(str(value)):
            yield _refused(f"{key} names the file or folder {_quoted(str(value))}", self.folders, ALLOWED_FOLDERS)

    def _sinks(self, key: str, value: Any) -> Findings:
        """A name without a module is looked up in a table, and imports nothing else."""
        for name in value if isinstance(value, list | tuple) else [value]:
            module, colon, _ = str(name).partition(":")
            if colon and not self.allows_module(module):
                yield self._refused_module(f"{key} names the module {_quoted(module)}", ("mlflow and tensorboard",))

    def _tags(self, key: str, value: Any) -> Findings:
        for name in value:
            if str(name).lower().strip().startswith(_RESERVED_TAGS) and name not in _OWN_TAGS:
                yield f"{key} sets the tag {_quoted(str(name))}, which is reserved: mlflow., rltrack. and prefect. identify runs."

    def _algorithm(self, key: str, value: Any) -> Findings:
        if _MODULE.fullmatch(str(value)):
            yield from self._text(key, str(value))

    def _policy(self, key: str, value: Any) -> Findings:
        if _MODULE.fullmatch(str(value)):
            yield from self._text(key, str(value))
        elif not str(value).isidentifier():
            yield f"{key} is {_quoted(str(value))}, which is not a policy. Allowed: MlpPolicy, CnnPolicy, MultiInputPolicy, …"

    def _refused_module(self, asked: str, known: tuple[str, ...]) -> str:
        return _refused(asked, (*known, *self.modules), ALLOWED_MODULES)


RULES: Mapping[str, Callable[[Permissions, str, Any], Findings]] = {
    "agent.algorithm": Permissions._algorithm,
    "agent.policy": Permissions._policy,
    "agent.hyperparameters": Permissions._data,
    "environment.id": Permissions._environment,
    "environment.kwargs": Permissions._data,
    "environment.wrappers": Permissions._wrappers,
    "environment.monitor_kwargs": Permissions._data,
    "environment.vec_env_kwargs": Permissions._data,
    "hooks": Permissions._data,
    "checkpoints.store": Permissions._address,
    "tracking.mlflow_tracking_uri": Permissions._tracking_uri,
    "tracking.tensorboard_log_dir": Permissions._folder,
    "tracking.sinks": Permissions._sinks,
    "tracking.tags": Permissions._tags,
}
"""Keys that can name something outside the run, with their checks."""


def _keys(configuration: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in configuration.items():
        if name in _SECTIONS and isinstance(value, Mapping):
            yield from ((f"{name}.{key}", item) for key, item in value.items())
        else:
            yield name, value


def _wrappers_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names of wrappers with their arguments."""
    for item in value if isinstance(value, list | tuple) else ():
        for path, arguments in ({item: {}} if isinstance(item, str) else dict(item)).items():
            yield str(path), arguments


def _variables_of(value: Any) -> Iterator[str]:
    """Yield the names of environment variables in arguments, at any depth."""
    if isinstance(value, Mapping):
        if set(value) == {"env"}:
            yield str(value["env"])
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        yield from _variables_of(item)


def _refused(asked: str, allowed: Any, variable: str) -> str:
    return f"{asked}. Allowed: {', '.join(allowed) or 'none'}. To allow it, set {variable} where it runs."


def _is_file_key(key: str) -> bool:
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rpartition(".")[2]).lower()
    return last.split("_")[-1] in _FILE_WORDS


def _parsed(address: str) -> tuple[str, str, str, tuple[str, ...]] | None:
    """Return scheme, host, port and path of a plain address; None for any other, and if the path has ``..``.

    An address with an account, a query, a fragment, an escape or a backslash is not plain: it can lead to another place than
    it seems to.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return None
    scheme, host = found[1].lower(), found[2].lower()
    path = tuple(found[4].rstrip("/").split("/")[1:])
    if any(part in (".", "..") for part in path):
        return None
    return scheme, host, found[3] or _PORTS.get(scheme, ""), path


def _is_under(asked: tuple[str, str, str, tuple[str, ...]], known: tuple[str, str, str, tuple[str, ...]]) -> bool:
    if asked[:3] != known[:3] or asked[3][: len(known[3])] != known[3]:
        return False
    if asked[0] in _LOCAL or asked[0].startswith("sqlite"):
        return Path(_local_path(asked)).resolve().is_relative_to(Path(_local_path(known)).resolve())
    return True


def _local_path(address: tuple[str, str, str, tuple[str, ...]]) -> str:
    """Return the path on this machine of an address; sqlite's begins with one more slash."""
    path = "/".join(address[3])
    return path if address[0].startswith("sqlite") else f"/{path}"


def _without_user(address: str) -> str:
    return re.sub(r"^([\w+.-]+://)[^/]*@", r"\1", address)


def _shown(address: str) -> str:
    """Return an address without its account and its query, which may be secret."""
    return re.split(r"[?#;]", _without_user(address), maxsplit=1)[0]


def _cut(text: str, longest: int = 120) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def _quoted(text: str) -> str:
    return repr(_cut(text))
