"""Removes secrets from errors, states and log lines of flows and tasks before they go to Prefect, where others read them."""

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
    """Decorate the function of a flow or task, so that its errors and its state have no secrets.

    An error with a secret in its message, its arguments or its causes is replaced by one of the same type without a cause.
    Other errors and signals pass unchanged.
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
        raise clean  # outside the handler, where Python would chain the original error

    # Prefect resolves annotations in the module of the function that it gets, which is this one
    signature = inspect.signature(function, eval_str=True)
    guarded.__signature__ = signature  # type: ignore[attr-defined]
    guarded.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()}
    return guarded


def without_secrets_in(error: Exception) -> Exception:
    """Return the error itself if neither it nor its causes have a secret; else one of its type without."""
    if all(without_secrets(text) == text for each in _chain(error) for text in _texts(each)):
        return error
    text = without_secrets(_text(error))
    clean = _of_same_type(error, text)
    clean.__traceback__ = error.__traceback__
    for note in getattr(error, "__notes__", ()):
        clean.add_note(without_secrets(note))
    return clean


def _of_same_type(error: Exception, text: str) -> Exception:
    """Return an error of the same classes with the given text and nothing else."""
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
            except Exception:  # a class with an unusual constructor
                continue
        try:
            subclass = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__str__": lambda self: text})
            clean = kind.__new__(subclass)
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
    except Exception:  # a class whose __str__ fails
        return ""


class _WithoutSecrets(logging.Filter):
    """Removes secrets from a log record, its traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            if without_secrets(trace) != trace:
                record.exc_info, record.exc_text = None, None
                message = f"{message}\n{trace.rstrip()}"
        clean = without_secrets(message)
        if clean != record.getMessage():
            record.msg, record.args = clean, ()
        return True


def keep_secrets_out_of_logs() -> None:
    """Remove secrets from all log lines of flow and task runs, also of Prefect's engine; can be called repeatedly."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _WithoutSecrets) for known in logger.filters):
            logger.addFilter(_WithoutSecrets())
