"""What leaves a flow or a task has no secret in it: errors, states and log lines go to Prefect, where others read them."""

from __future__ import annotations

import functools
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from prefect.client.schemas.objects import State

from rltrack.secrets import without_secrets

P = ParamSpec("P")
R = TypeVar("R")
_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def redacting(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a flow's or task's function, so that its errors and its state are free of secrets.

    An error with a secret in its message, its arguments, or in an error behind it, is replaced by one of its type, which has
    nothing behind it. Others pass as they are, and so do signals, which are no errors.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            clean = without_secrets_in(error)
            if clean is error:
                raise
        else:
            if isinstance(result, State) and result.message:
                result = result.model_copy(update={"message": without_secrets(result.message)})
            return result
        raise clean  # outside of the handler: there, Python would hang the error itself behind it

    # Prefect looks up names of types in the module of the function that it is given, which is ours
    signature = inspect.signature(function, eval_str=True)
    guarded.__signature__ = signature  # type: ignore[attr-defined]
    guarded.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()}
    return guarded


def without_secrets_in(error: Exception) -> Exception:
    """Return the error itself if no secret is in it or behind it; else one of its type without."""
    if all(without_secrets(text) == text for each in _chain(error) for text in _texts(each)):
        return error
    text = without_secrets(_text(error))
    clean = _of_same_type(error, text)
    clean.__traceback__ = error.__traceback__
    for note in getattr(error, "__notes__", ()):
        clean.add_note(without_secrets(note))
    return clean


def _of_same_type(error: Exception, text: str) -> Exception:
    """An error that is an instance of the same classes, says the text, and holds nothing else."""
    arguments = tuple(without_secrets(item) if isinstance(item, str) else item for item in error.args)
    plain = all(item is None or isinstance(item, str | int | float | bool) for item in arguments)
    classes: list[Any] = list(type(error).__mro__)
    for kind in classes:
        for given in (arguments, (text,)) if plain else ((text,),):
            try:
                clean = kind.__new__(kind)
                clean.args = given
                if str(clean) != text:
                    continue
                if isinstance(error, OSError) and isinstance(clean, OSError):
                    clean.errno = error.errno
                return clean  # type: ignore[no-any-return]
            except Exception:  # a class that is made in a way of its own
                continue
        try:
            said = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__str__": lambda self: text})
            clean = kind.__new__(said)
            clean.args = (text,)
        except Exception:
            continue
        return clean  # type: ignore[no-any-return]
    return RuntimeError(text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _texts(error: BaseException) -> Iterator[str]:
    yield from (_text(item) for item in (error, *error.args, *getattr(error, "__notes__", ())))


def _text(item: object) -> str:
    try:
        return str(item)
    except Exception:  # a class whose text cannot be had
        return ""


class _WithoutSecrets(logging.Filter):
    """Takes secrets out of a record, its traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            if without_secrets(trace) != trace:
                record.exc_info, record.exc_text = None, None
                said = f"{said}\n{trace.rstrip()}"
        clean = without_secrets(said)
        if clean != record.getMessage():
            record.msg, record.args = clean, ()
        return True


def keep_secrets_out_of_logs() -> None:
    """Take secrets out of all lines that flow and task runs log, those of Prefect's engine too; harmless if called twice."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _WithoutSecrets) for known in logger.filters):
            logger.addFilter(_WithoutSecrets())
