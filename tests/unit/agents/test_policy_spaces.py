"""A space that is described, written as JSON and built again is the same: constructor, dtype, bounds, start, order of keys."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rltrack.agents.policy_spaces import space_as_data, space_of

INTEGERS = tuple(np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOATS = tuple(np.dtype(f"float{bits}") for bits in (16, 32, 64))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from([*FLOATS, *INTEGERS, np.dtype(bool)]))
    shape = draw(SHAPES)
    elements = {"allow_nan": False} if dtype.kind == "f" else {}
    ends = [draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **elements))) for _ in range(2)]
    low, high = np.asarray(np.minimum(*ends)), np.asarray(np.maximum(*ends))
    if draw(st.booleans()) and dtype.kind != "b":  # one number for all
        least, most = (low.min(), high.max()) if low.size else (0, 1)
        low, high = np.full(shape, least, dtype), np.full(shape, most, dtype)
    if dtype.kind == "i" and draw(st.booleans()):  # without bounds, as Gymnasium says it for integers
        return (
            spaces.Box(-np.inf, high, shape, dtype.type)
            if draw(st.booleans())
            else spaces.Box(low, np.inf, shape, dtype.type)
        )
    return spaces.Box(low, high, shape, dtype.type)


@st.composite
def discretes(draw):
    dtype = draw(st.sampled_from(INTEGERS))
    info = np.iinfo(dtype)
    n = draw(st.integers(1, min(1000, int(info.max))))
    return spaces.Discrete(n, start=draw(st.integers(int(info.min), int(info.max) - n + 1)), dtype=dtype.type)


@st.composite
def multi_discretes(draw):
    dtype = draw(st.sampled_from(INTEGERS))
    nvec = draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=3), elements=st.integers(1, 100)))
    start = draw(hnp.arrays(dtype, nvec.shape, elements=st.integers(0 if dtype.kind == "u" else -20, 20)))
    return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)


MULTI_BINARY = st.one_of(st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=3)).map(spaces.MultiBinary)
SIMPLE = st.one_of(boxes(), discretes(), multi_discretes(), MULTI_BINARY)


def dictionaries(children):
    keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    return st.lists(st.tuples(keys, children), min_size=1, max_size=4, unique_by=lambda pair: pair[0]).map(spaces.Dict)


ALL = st.recursive(SIMPLE, dictionaries, max_leaves=6)


def assert_same(one, other):
    assert one == other
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    if isinstance(one, spaces.Dict):
        assert list(one.spaces) == list(other.spaces)
        for key in one.spaces:
            assert_same(one.spaces[key], other.spaces[key])
    if isinstance(one, spaces.Box):
        for name in ("low", "high", "bounded_below", "bounded_above"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


@settings(max_examples=150, deadline=None)
@given(ALL)
@pytest.mark.slow
def test_described_written_and_built_it_is_the_same(space):
    data = space_as_data(space)
    for plain in (json.loads(json.dumps(data)), orjson.loads(orjson.dumps(data))):  # a model's file, and the journal
        built = space_of(plain)
        assert_same(space, built)
    with np.errstate(all="ignore"):
        samples = [one.sample() for one in (space, built)] if _can_sample(space) else []
    assert all(space.contains(sample) and built.contains(sample) for sample in samples)


def _can_sample(space):
    """Gymnasium itself overflows where an integer's bounds are those of its dtype, or a float's are nearly so."""
    if isinstance(space, spaces.Dict):
        return all(_can_sample(item) for item in space.spaces.values())
    if isinstance(space, spaces.Box):
        limit = {"f": 1e4, "b": 0}.get(space.dtype.kind, 100)
        return bool((abs(space.low.astype(float)) < limit).all() and (abs(space.high.astype(float)) < limit).all())
    return True


def test_the_order_of_keys_stays():
    box = spaces.Box(-1, 1, (2,), np.float32)
    for space in (spaces.Dict(z=box, a=box), spaces.Dict([("z", box), ("a", spaces.Dict([("y", box), ("b", box)]))])):
        assert_same(space, space_of(json.loads(json.dumps(space_as_data(space)))))


def test_a_description_of_format_1_is_read_in_its_own_order():
    item = {"type": "Box", "shape": [2], "dtype": "float32", "low": "-inf", "high": 1.0}
    old = {"type": "Dict", "spaces": {"z": item, "a": {"type": "Discrete", "n": 3, "start": 1}}}
    assert list(space_of(old).spaces) == ["z", "a"]
    assert space_of(old).spaces["a"] == spaces.Discrete(3, start=1)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Text(3),
        spaces.Dict({1: spaces.Discrete(2)}),
        spaces.Box(-1, 1, (2,), np.longdouble),
        spaces.Box(-1, 1, (2,), np.dtype(">f4")),
        spaces.Dict(a=spaces.Sequence(spaces.Discrete(2))),
    ],
)
def test_what_would_not_be_the_same_is_refused(space):
    with pytest.raises(ValueError, match=r"cannot be stored|not among"):
        space_as_data(space)


BOX = {"type": "Box", "shape": [2], "dtype": "float32", "low": -1, "high": 1}


@pytest.mark.parametrize(
    "data",
    [
        None, 3, [], "Box", {}, {"type": []}, {"type": "Tuple"}, {**BOX, "shape": [10**9]}, {**BOX, "shape": [-1]},
        {**BOX, "shape": [1] * 40}, {**BOX, "shape": "2"}, {**BOX, "shape": [True]}, {**BOX, "dtype": "object"},
        {**BOX, "dtype": "O"}, {**BOX, "dtype": ["float32"]}, {**BOX, "low": [0, 0, 0]}, {**BOX, "low": [[0], [0]]},
        {**BOX, "low": "nan"}, {**BOX, "low": None}, {**BOX, "low": 2}, {**BOX, "low": float("nan")}, {**BOX, "more": 1},
        {**BOX, "dtype": "uint8", "low": 0.5}, {**BOX, "dtype": "uint8", "high": 256}, {**BOX, "dtype": "uint8", "low": "-inf"},
        {**BOX, "high": 1e300}, {**BOX, "high": 10**400}, {"type": "Box"}, {"type": "Discrete", "n": 0},
        {"type": "Discrete", "n": 10**12}, {"type": "Discrete", "n": 2.5}, {"type": "Discrete", "n": 200, "dtype": "int8"},
        {"type": "Discrete", "n": 2, "start": 2**63}, {"type": "MultiDiscrete", "nvec": []},
        {"type": "MultiDiscrete", "nvec": [2.5]}, {"type": "MultiDiscrete", "nvec": [[1], [2, 3]]},
        {"type": "MultiDiscrete", "nvec": [10**9]}, {"type": "MultiDiscrete", "nvec": [2], "start": [1, 2]},
        {"type": "MultiDiscrete", "nvec": [0]}, {"type": "MultiBinary", "n": 10**12}, {"type": "MultiBinary", "n": "3"},
        {"type": "MultiBinary"}, {"type": "Dict", "spaces": {}}, {"type": "Dict", "spaces": 3},
        {"type": "Dict", "spaces": [["a", BOX], ["a", BOX]]}, {"type": "Dict", "spaces": [[1, BOX]]},
        {"type": "Dict", "spaces": ["ab"]}, {"type": "Dict", "spaces": [["a"]]}, {"type": "Dict", "depth": 0, "spaces": {}},
    ],
)  # fmt: skip
def test_what_is_no_space_is_a_clear_error(data):
    with pytest.raises(ValueError, match="policy's description"):
        space_of(data)


def test_a_nesting_without_end_is_refused():
    data = BOX
    for _ in range(50):
        data = {"type": "Dict", "spaces": [["a", data]]}
    with pytest.raises(ValueError, match="too deep"):
        space_of(data)
