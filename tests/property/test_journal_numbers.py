"""Whatever a record holds comes back as it was: numbers as numbers and text as text, in any field."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltrack.journal import decode_record, encode_record
from rltrack.journal.lines import decode_line, numbered_line

TEXT = st.one_of(
    st.sampled_from(["NaN", "Infinity", "-Infinity", "null"]), st.text(st.characters(codec="utf-8"), max_size=5)
)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(), TEXT)
TREE = st.recursive(
    LEAF, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)), max_leaves=8
)
NUMBERS = st.dictionaries(TEXT, st.floats(), max_size=3)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


@given(tree=TREE, numbers=NUMBERS)
def test_any_field_comes_back_as_it_was(tree, numbers):
    record = {"time": 1.0, "kind": "some-new-kind", "anything": tree, "numbers": numbers}
    line = encode_record(record)
    assert same(decode_record(line), record)
    assert same(decode_line(numbered_line(line, 3))[1], record)
    json.loads(line, parse_constant=pytest.fail)  # nothing that other readers of JSON, such as jq, refuse


def test_numpy_numbers_come_back():
    line = encode_record({"time": 1.0, "kind": "new", "one": np.float32("nan"), "many": np.array([1.0, np.inf])})
    found = decode_record(line)
    assert math.isnan(found["one"])
    assert found["many"] == [1.0, math.inf]


def test_fields_of_numbers_alone_are_written_as_before():
    record = {"seq": 1, "time": 1.0, "kind": "metrics", "step": 2, "values": {"a": math.nan}}
    assert encode_record(record) == b'{"seq":1,"time":1.0,"kind":"metrics","step":2,"values":{"a":"NaN"}}\n'


def test_lines_of_older_releases_mean_what_they_did():
    found = decode_record(
        b'{"time":1.0,"kind":"decision","step":1,"decision":"NaN","reason":"NaN","numbers":{"a":"NaN"}}'
    )
    assert found["reason"] == "NaN"
    assert math.isnan(found["numbers"]["a"])


@pytest.mark.parametrize("places", ["x", 3, None, [3], [[]], [["kind"]], [["a", "b"]], [["kind", 0]], [[{}]], {"a": 1}])
def test_places_that_are_none_are_refused(places):
    line = orjson.dumps({"time": 1.0, "kind": "new", "nonfinite": places})
    with pytest.raises(ValueError, match="nonfinite"):
        decode_record(line)
