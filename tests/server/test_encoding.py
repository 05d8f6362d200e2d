"""JSON in parts is JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api import encoding
from server.api.encoding import to_json, to_json_in_parts

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values)
def test_parts_make_the_whole(value: object) -> None:
    assert to_json_in_parts(value) == to_json(value)


def test_long_lists_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_ITEMS_PER_PART", 3)
    for length in range(10):
        for item in (1, {"a": [1] * 5}, [2], {}):
            value = {"choices": [item] * length, "b": {}}
            assert to_json_in_parts(value) == to_json(value)
            assert json.loads(to_json_in_parts(value)) == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_nan_and_no_infinity(number: float) -> None:
    for encode in (to_json, to_json_in_parts):
        with pytest.raises(ValueError, match="not JSON compliant"):
            encode({"a": [number]})
