"""Layers of environments, from the outermost wrapper to each environment's own: taken whole, and put back in place.

One pickle stream holds the attributes of every layer, so that objects that two layers share stay shared. What must stay
live is left where it is: the layers themselves, spaces (their random streams are taken apart), simulators (their contents
are taken apart), specifications, functions, modules and open files.

Reading a stream runs code, as any pickle does: it is a part of its own that only a resume reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from rltrack.acceleration.patches import Replacement
from rltrack.agents.env_state import simulators
from rltrack.agents.env_state.recorder import Recorder, recorder_of
from rltrack.agents.env_state.streams import LayerPickler, LayerUnpickler
from rltrack.agents.gym_types import Env, Space
from rltrack.checkpoints.encoding import State
from rltrack.errors import NotCapturable

Layer: TypeAlias = VecEnv | Env
"""One layer of environments: vectorised ones, a wrapper, or the environment itself."""

_STAYS = (EnvSpec, Recorder, Replacement, gym.Space, types.FunctionType, types.ModuleType, type)
_STAYING_MODULES = ("glfw", "OpenGL", "gymnasium.envs.mujoco.mujoco_rendering", "multiprocessing")
_SCREEN = {
    "pygame.surface",
    "pygame.time",
    "pygame.font",
    "pygame.freetype",
    "pygame.display",
    "pygame.window",
    "pygame.mixer",
}
_SEEDED_MODULES = ("gymnasium.", "ale_py.", "stable_baselines3.", "sb3_contrib.", "rltrack.")
_STAYING_NAMES = {
    VecEnv: ("buf_infos", "reset_infos"),
    DummyVecEnv: ("envs",),
    Monitor: ("results_logger",),
    VecMonitor: ("results_writer",),
    SubprocVecEnv: ("remotes", "work_remotes", "processes"),
    VecEnvWrapper: ("class_attributes",),
}
"""Infos are returned by each step and are no state: SB3 never reads old ones."""


@dataclass(frozen=True, slots=True)
class CoreMethod:
    """How the innermost layer, the environment itself, is taken.

    Attributes:
        name: ``attributes`` (all of them), ``own`` (its get_state and set_state), ``replay`` (of the running episode), or
            ``leave`` (only the layers around it are taken).
        take: From the environment to something that can be pickled.
        put: The way back.
    """

    name: str
    take: Callable[[Any], dict[str, object]]
    put: Callable[[Any, dict[str, Any]], None]


def vec_layers(venv: VecEnv) -> Iterator[VecEnv]:
    """Yield the layers of vectorised environments, the outermost wrapper first and the environments themselves last."""
    layer = venv
    while isinstance(layer, VecEnvWrapper):
        yield layer
        layer = layer.venv
    yield layer


def gym_layers(env: Env) -> Iterator[Env]:
    """Yield the layers of a Gymnasium environment, outermost first."""
    while True:
        yield env
        if not isinstance(env, gym.Wrapper):
            return
        env = env.env


def capture(layers: Sequence[Layer], cores: Sequence[Layer], method: str) -> dict[str, object]:
    """Return the state of `layers`.

    Args:
        layers: Every layer, in an order that depends on the construction only.
        cores: Those of them that are an environment itself.
        method: How these are taken; a name in `METHODS`.

    Raises:
        NotCapturable: If an attribute cannot be pickled; it is named.
    """
    spaces = _spaces(layers)
    for layer in layers:
        if (method == "attributes" or not _among(layer, cores)) and (slots := _slots(layer)):
            raise NotCapturable(
                f"{type(layer).__name__} keeps {', '.join(slots)} in __slots__, which is not looked into."
            )
    contents = [METHODS[method].take(layer) if _among(layer, cores) else _attributes(layer) for layer in layers]
    if any(_may_read_reset_infos(layer) for layer in layers):
        for layer, attributes in zip(layers, contents, strict=True):
            attributes.update(_reset_infos(layer, layers, spaces))
    buffer = io.BytesIO()
    pickler = LayerPickler(buffer, layers, spaces)
    try:
        pickler.dump(contents)
        if shared := pickler.shared_arrays():
            buffer = io.BytesIO()
            pickler = LayerPickler(buffer, layers, spaces, shared)
            pickler.dump(contents)
    except Exception as error:
        raise NotCapturable(_culprit(layers, spaces, contents, error)) from None
    return {
        "method": method,
        "pickle": buffer.getvalue(),
        "layers": [type(layer).__name__ for layer in layers],
        "names": [
            [name for name, own in sorted(vars(layer).items()) if type(own) is not Replacement] for layer in layers
        ],
        "spaces": [_stream(space) for space in spaces],
        "simulators": [simulators.take(simulator) for simulator in pickler.simulators],
        "time": time.time(),
    }


def restore(layers: Sequence[Layer], cores: Sequence[Layer], state: State) -> None:
    """Put the state back into layers that were built as the first ones were.

    Raises:
        NotCapturable: If they were built otherwise.
        ResumeMismatch: If replaying an episode did not give what was recorded.
    """
    spaces = _spaces(layers)
    names = [type(layer).__name__ for layer in layers]
    if names != state["layers"] or len(spaces) != len(state["spaces"]):
        raise NotCapturable(
            f"The environment was saved with the layers {' > '.join(state['layers'])}; now it has {' > '.join(names)}. Build it "
            "as the first time."
        )
    live = _live_simulators(layers, cores, spaces, state)
    if len(live) != len(state["simulators"]):
        raise NotCapturable(
            f"The environment was saved with {len(state['simulators'])} simulators; now it has {len(live)}. Build it as the "
            "first time."
        )
    contents = LayerUnpickler(io.BytesIO(state["pickle"]), layers, spaces, live).load()
    for simulator, saved in zip(live, state["simulators"], strict=True):
        simulators.put(simulator, saved)
    method = METHODS[state["method"]]
    away = time.time() - state["time"]
    for layer, saved, known in zip(layers, contents, state["names"], strict=True):
        if _among(layer, cores):
            method.put(layer, saved)
        else:
            _put_attributes(layer, saved)
        if method.name == "attributes" or not _among(layer, cores):
            for name in [name for name in _attributes(layer) if name not in known]:
                del vars(layer)[name]
        if "t_start" in saved:  # a Monitor's clock continues as if no time had passed
            vars(layer)["t_start"] += away
    for space, stream in zip(spaces, state["spaces"], strict=True):
        if stream is None:
            space._np_random = None  # type: ignore[assignment]
        else:
            space.np_random.bit_generator.state = stream


def _among(layer: Layer, cores: Sequence[Layer]) -> bool:
    return any(layer is core for core in cores)


def _attributes(layer: Layer) -> dict[str, object]:
    staying = [name for cls, names in _STAYING_NAMES.items() if isinstance(layer, cls) for name in names]
    return {name: value for name, value in vars(layer).items() if name not in staying and not _stays(value)}


def _stays(value: object) -> bool:
    if isinstance(value, io.IOBase):
        return not isinstance(value, io.BytesIO | io.StringIO)
    if isinstance(value, types.MethodType | types.BuiltinFunctionType):
        owner = value.__self__
        return owner is None or isinstance(owner, gym.Env | VecEnv) or _stays(owner)
    return isinstance(value, _STAYS) or is_of_the_screen(value) or type(value).__module__.startswith(_STAYING_MODULES)


def is_of_the_screen(value: object) -> bool:
    """Whether it is one of pygame's surfaces, clocks, fonts or sounds, which show what an environment is, and decide nothing."""
    return type(value).__module__ in _SCREEN


def _slots(layer: Layer) -> list[str]:
    """Return what a layer keeps outside its dictionary, where `_attributes` does not look."""
    found = [cls.__dict__.get("__slots__", ()) for cls in type(layer).__mro__]
    names = [name for slots in found for name in ((slots,) if isinstance(slots, str) else slots)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def digest_of_start(layers: Sequence[Layer], cores: Sequence[Layer], method: str) -> str:
    """Return a hash of what users' own layers hold after the first reset: equal where training begins alike again.

    Gymnasium's and SB3's layers begin alike if they are seeded, and some of them keep the time.

    Raises:
        NotCapturable: If an attribute cannot be pickled.
    """
    own = [layer for layer in layers if not type(layer).__module__.startswith(_SEEDED_MODULES)]
    contents = [METHODS[method].take(layer) if _among(layer, cores) else _attributes(layer) for layer in own]
    for attributes in contents:
        attributes.pop("before", None)  # of a replay: the first reset is seeded, whatever was before
    spaces = _spaces(own)
    buffer = io.BytesIO()
    try:
        LayerPickler(buffer, layers, spaces).dump((contents, [_stream(space) for space in spaces]))
    except Exception as error:
        raise NotCapturable(_culprit(own, spaces, contents, error)) from None
    return hashlib.blake2b(buffer.getvalue(), digest_size=16).hexdigest()


def pickled_attributes(core: Env) -> dict[str, bytes]:
    """Return what an environment itself holds, as far as it can be pickled, to compare."""
    found = {}
    for name, value in _attributes(core).items():
        buffer = io.BytesIO()
        with contextlib.suppress(Exception):
            LayerPickler(buffer, [core], []).dump(value)
            found[name] = buffer.getvalue()
    return found


def _may_read_reset_infos(layer: object) -> bool:
    """Whether it is a user's own wrapper around vectorised environments; SB3's read no infos of a reset that is past."""
    return isinstance(layer, VecEnvWrapper) and not type(layer).__module__.startswith(
        ("stable_baselines3", "sb3_contrib")
    )


def _reset_infos(layer: Layer, layers: Sequence[Layer], spaces: list[Space]) -> dict[str, object]:
    """The infos of the last reset, if they can be pickled."""
    infos = vars(layer).get("reset_infos") if isinstance(layer, VecEnv) else None
    if infos is None:
        return {}
    try:
        LayerPickler(io.BytesIO(), layers, spaces).dump(infos)
    except Exception:
        return {}
    return {"reset_infos": infos}


def _put_attributes(layer: Layer, attributes: dict[str, object]) -> None:
    vars(layer).update(attributes)


def has_own_state(core: Any) -> bool:
    """Whether an environment offers ``get_state() -> state`` and ``set_state(state)``."""
    import inspect

    try:
        get = inspect.signature(core.get_state).parameters.values()
        put = list(inspect.signature(core.set_state).parameters.values())
    except (AttributeError, TypeError, ValueError):
        return False
    needed = [
        one for one in put if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return all(one.default is not one.empty for one in get) and len(needed) == 1


def _put_own(core: Any, saved: dict[str, object]) -> None:
    core.set_state(saved["state"])
    core._np_random = saved["np_random"]


METHODS = {
    method.name: method
    for method in (
        CoreMethod("attributes", _attributes, _put_attributes),
        CoreMethod("leave", lambda core: {}, lambda core, saved: None),
        CoreMethod(
            "own", lambda core: {"state": core.get_state(), "np_random": vars(core).get("_np_random")}, _put_own
        ),
        CoreMethod(
            "replay", lambda core: recorder_of(core).capture(), lambda core, saved: recorder_of(core).replay(saved)
        ),
    )
}
"""How an environment itself may be taken, by name."""


def _spaces(layers: Sequence[Layer]) -> list[Space]:
    """Every space that a layer holds, nested ones too, each once, in an order that depends on the construction only."""
    found: dict[int, Space] = {}

    def add(value: object) -> None:
        if isinstance(value, gym.Space) and id(value) not in found:
            found[id(value)] = value
            inner = getattr(value, "spaces", ())
            for item in inner.values() if isinstance(inner, dict) else inner:
                add(item)

    for layer in layers:
        for _, value in sorted(vars(layer).items()):
            add(value)
    return list(found.values())


def _stream(space: Space) -> Any:
    generator = space._np_random
    return None if generator is None else generator.bit_generator.state


def _live_simulators(
    layers: Sequence[Layer], cores: Sequence[Layer], spaces: list[Space], state: State
) -> list[object]:
    """The simulators of the layers as they are now, in the order in which a stream meets them.

    Raises:
        NotCapturable: If the layers hold something now that cannot be pickled, so that its simulators cannot be found.
    """
    whole = state["method"] == "attributes"
    contents = [_attributes(layer) if whole or not _among(layer, cores) else {} for layer in layers]
    pickler = LayerPickler(io.BytesIO(), layers, spaces)
    try:
        pickler.dump(contents)
    except Exception as error:
        if not state["simulators"]:
            return []  # there is none to find
        raise NotCapturable(_culprit(layers, spaces, contents, error)) from None
    return pickler.simulators


def _culprit(layers: Sequence[Layer], spaces: list[Space], contents: list[dict[str, object]], error: Exception) -> str:
    """Name the first attribute that cannot be pickled."""
    for layer, attributes in zip(layers, contents, strict=True):
        for name, value in attributes.items():
            try:
                LayerPickler(io.BytesIO(), layers, spaces).dump(value)
            except Exception as own:
                return f"{type(layer).__name__}.{name} is a {type(value).__name__}, which cannot be pickled ({own})."
    return f"The environment cannot be pickled: {error}."
