"""One record as one line, and back: JSON, with a number of the line and a checksum in front.

``{"crc":"9f0a11c3","line":12,"seq":…}``: the CRC-32 of everything behind it, and which line of the journal it is, so that a
byte that changed, and a line that is gone, are noticed. Lines without both, as older releases wrote them, are read as they are.

JSON has no NaN and no infinities; they are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``. In the fields
that hold nothing but numbers (`NUMERIC_FIELDS`) they are read back as numbers. Where they stand in any other field, which can
hold text too, the line's field ``nonfinite`` lists their places: ``"nonfinite":[["choices","batch_size","measured",0]]``.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import orjson

from rltrack.journal.fields import NUMERIC_FIELDS, TEXT_TO_FLOAT, check_record, numeric

Record = dict[str, Any]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_PLACES = "nonfinite"
_PREFIX = b'{"crc":"'
_BODY = len(_PREFIX) + 10  # behind eight digits, a quote and a comma


def encode_record(record: Record) -> bytes:
    """Return a record as one line, newline included, without number and checksum."""
    line = orjson.dumps(record, option=_OPTIONS)
    # orjson writes NaN and infinities as null; looking for it is far cheaper than looking at every number
    if b"null" not in line:
        return line
    places: list[list[str | int]] = []
    written = {key: _explicit(value, [key], [] if key in NUMERIC_FIELDS else places) for key, value in record.items()}
    return orjson.dumps(written | {_PLACES: places} if places else written, option=_OPTIONS)


def numbered_line(line: bytes, number: int) -> bytes:
    """Put a checksum and the line's number in front of what `encode_record` returned."""
    rest = b'"line":%d,%b' % (number, line[1:])
    return b'%b%08x",%b' % (_PREFIX, zlib.crc32(rest[:-1]), rest)


def decode_line(line: bytes) -> tuple[int | None, Record]:
    """Return the number of a line (None where it has none) and its record.

    Raises:
        ValueError: If it does not match its checksum, is not a JSON object, or a field cannot be what training wrote.
    """
    line = line.rstrip(b"\n")
    is_numbered = line.startswith(_PREFIX)
    if is_numbered and line[:_BODY] != b'%b%08x",' % (_PREFIX, zlib.crc32(line[_BODY:])):
        raise ValueError("it does not match its checksum")
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError("a journal line is a JSON object")
    number = None
    if is_numbered:
        del record["crc"]
        number = record.pop("line", None)
        if type(number) is not int or number < 1:
            raise ValueError("it has no line number")
    elif "crc" in record or "line" in record:
        raise ValueError("its beginning is not as it was written")
    _restore(record, record.pop(_PLACES, []))
    for field in NUMERIC_FIELDS:
        if field in record:
            record[field] = numeric(record[field])
    check_record(record)
    return number, record


def decode_record(line: bytes) -> Record:
    """Return the record of a line.

    Raises:
        ValueError: As `decode_line`.
    """
    return decode_line(line)[1]


def _explicit(value: Any, place: list[str | int], places: list[list[str | int]]) -> Any:
    """Replace what JSON cannot hold, and add to `places` where it stood."""
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        value = value.tolist()
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        places.append(place)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _explicit(item, [*place, key], places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_explicit(item, [*place, index], places) for index, item in enumerate(value)]
    return value


def _restore(record: Record, places: Any) -> None:
    """Put numbers back where `places` says that NaN or an infinity stood.

    Raises:
        ValueError: If there is nothing of the kind there.
    """
    try:
        for *parents, last in places:
            node: Any = record
            for step in parents:
                node = node[step]
            node[last] = TEXT_TO_FLOAT[node[last]]
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"'{_PLACES}' does not say where numbers stand") from None
