"""The end of a user's own ``model.learn()``: SB3 calls its callbacks only at a good end."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback

from rltrack.journal.values import episode_values

Failed = Callable[[BaseException], None]

_WATCHED = ("collect_rollouts", "train", "dump_logs", "_do_one_update")
"""What ``learn()`` calls and does not catch the errors of."""

_watchers: weakref.WeakKeyDictionary[BaseAlgorithm, list[Failed]] = weakref.WeakKeyDictionary()


class LearningWatch:
    """Hears of an error, Ctrl-C or exit that ends a ``model.learn()``, until it is closed.

    The model is of a class derived from its own meanwhile, of the same name, in which `_WATCHED` report what they raise. Nothing
    is put into the model itself, so that saving and copying it give what they always give.

    Args:
        model: Whose.
        failed: Called with the exception, before it propagates.
    """

    def __init__(self, model: BaseAlgorithm, failed: Failed) -> None:
        self._model, self._failed = model, failed
        watchers = _watchers.setdefault(model, [])
        if not watchers:
            model.__class__ = _watched(type(model))
        watchers.append(failed)

    def close(self) -> None:
        """Stop; the model is of its own class again when no watcher is left. Harmless if called twice."""
        watchers = _watchers.get(self._model, [])
        if self._failed in watchers:
            watchers.remove(self._failed)
            if not watchers:
                del _watchers[self._model]
                self._model.__class__ = type(self._model).__rltrack_own__  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=64)
def _watched(own: type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    def reduce(self: BaseAlgorithm, protocol: Any) -> Any:
        made, arguments, *rest = tuple(own.__reduce_ex__(self, protocol))
        return (made, tuple(own if item is type(self) else item for item in arguments), *rest)

    members: dict[str, Any] = {
        "__rltrack_own__": own,
        "__reduce_ex__": reduce,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
    }
    for name in _WATCHED:
        if callable(getattr(own, name, None)):
            members[name] = _Telling(name, getattr(own, name))
    return type(own.__name__, (own,), members)


class _Telling:
    """A method that passes what it raises on to the watchers of a model, also where the model has one of its own (`accelerate`)."""

    def __init__(self, name: str, method: Callable[..., Any]) -> None:
        self._name, self._method = name, method

    def __get__(self, model: BaseAlgorithm | None, kind: type | None = None) -> Callable[..., Any]:
        if model is None:
            return self._method
        method = vars(model).get(self._name) or functools.partial(self._method, model)

        @functools.wraps(self._method)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            try:
                return method(*arguments, **keywords)
            except BaseException as error:
                for failed in list(_watchers.get(model, [])):
                    failed(error)
                raise

        return watched

    def __set__(self, model: BaseAlgorithm, value: Any) -> None:
        vars(model)[self._name] = value

    def __delete__(self, model: BaseAlgorithm) -> None:
        del vars(model)[self._name]


class EndOfLearning:
    """Calls a function when ``learn()`` has ended well, for a callback that another one holds, such as ``EvalCallback``.

    Those pass on the beginning and their events, but not the end.

    Args:
        top: The callback that ``learn()`` was given.
        own: The one that wants to know.
        ended: Called after the others.
    """

    def __init__(self, top: BaseCallback | None, own: BaseCallback, ended: Callable[[], None]) -> None:
        self._top = None if top is None or _is_told(top, own) else top
        self.is_needed = self._top is not None
        """Whether another callback holds ours; ours is then called for that one's events only, not of each step."""
        if self._top is not None:
            end = self._top.on_training_end

            def and_us() -> None:
                end()
                ended()

            self._top.on_training_end = and_us  # type: ignore[method-assign]

    def close(self) -> None:
        """Take it away again; harmless if called twice."""
        if self._top is not None:
            self._top.__dict__.pop("on_training_end", None)
            self._top = None


class EvaluationWatch:
    """Hears of the evaluations of an ``EvalCallback``, each as soon as it has ended; until it is closed.

    Args:
        callback: Whose.
        heard: Called with return, length and infos (`episode_values`) of each episode.
    """

    def __init__(
        self, callback: EvalCallback, heard: Callable[[list[float], list[int], list[dict[str, float]]], None]
    ) -> None:
        self._callback: EvalCallback | None = callback
        played: dict[str, Any] = {}
        note, step = callback._log_success_callback, callback._on_step

        def and_note(seen: dict[str, Any], names: dict[str, Any]) -> None:
            infos = played.setdefault("infos", [])
            played.update(returns=seen["episode_rewards"], lengths=seen["episode_lengths"])
            if seen["done"] and ("episode" in seen["info"] or not seen["is_monitor_wrapped"]):
                infos.append(episode_values(seen["info"]))
            note(seen, names)

        def and_tell() -> bool:
            goes_on = step()
            if played:
                heard(list(map(float, played["returns"])), list(map(int, played["lengths"])), played["infos"])
                played.clear()
            return goes_on

        callback.__dict__.update(_log_success_callback=and_note, _on_step=and_tell)

    def close(self) -> None:
        """Take it away again; harmless if called twice."""
        if self._callback is not None:
            for name in ("_log_success_callback", "_on_step"):
                self._callback.__dict__.pop(name, None)
            self._callback = None


def callbacks_in(top: BaseCallback | None) -> Iterator[BaseCallback]:
    """Yield a callback and those that it holds."""
    if top is None:
        return
    yield top
    held = [*getattr(top, "callbacks", ()), getattr(top, "callback", None), getattr(top, "callback_on_new_best", None)]
    for item in dict.fromkeys(held):
        if isinstance(item, BaseCallback):
            yield from callbacks_in(item)


def _is_told(top: BaseCallback, own: BaseCallback) -> bool:
    return top is own or (isinstance(top, CallbackList) and any(_is_told(item, own) for item in top.callbacks))
