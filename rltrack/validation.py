"""Pydantic's findings, in the project's words: one line for each thing that is wrong, with what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from rltrack.errors import ConfigurationError, did_you_mean
from rltrack.secrets import shown

ModelT = TypeVar("ModelT", bound=BaseModel)


def validate_section(model: type[ModelT], data: Mapping[str, Any], source: str) -> ModelT:
    """Return the data as a section.

    Args:
        model: Which section.
        data: Nested mapping.
        source: What the data is called in an error.

    Raises:
        ConfigurationError: With one line for each thing that is wrong.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ConfigurationError(f"{source}: " + "\n".join(dict.fromkeys(lines))) from None


def _explain(model: type[BaseModel], item: Any) -> str:
    """One line for one of Pydantic's findings, in the project's words."""
    location = [part for part in item["loc"] if not str(part).startswith(("function-", "NormalizeConfig", "bool"))]
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        allowed = f" Allowed: {', '.join(fields)}." if fields else ""
        return f"Unknown key '{key}'.{did_you_mean(str(location[-1]), fields)}{allowed}"
    if item["type"] == "missing":
        return f"Key '{key}' is required."
    message = item["msg"].removeprefix("Value error, ")
    is_whole = isinstance(item["input"], Mapping) or item["input"] is model
    found = "" if is_whole else f", found {shown(item['input'], key)}"
    where = f"'{key}': " if key else ""
    if message.startswith("Input should be"):
        return f"{where}{message.replace('Input should be', 'should be')}{found}."
    return f"{where}{message}{'' if message.endswith('.') else '.'}"


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    current: Any = model
    for part in path:
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return list(current.model_fields) if current is not None and hasattr(current, "model_fields") else []
