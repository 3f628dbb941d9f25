from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from banksman.canonical import MAX_INT, canonical, parse, parse_as
from banksman.errors import InvalidInput

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INT, MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))


@given(values)
def test_canonical_is_rfc_8785(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


class Model(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    size: int | None = None
    args: dict[str, Any] | None = None


@given(
    st.lists(
        st.tuples(st.sampled_from(["name", "size", "args", "other"]), values | st.dictionaries(texts, values)),
        max_size=4,
    ),
    st.booleans(),
)
@example([("name", "x"), ("args", {"a:": [1, {"b": ":"}]})], False)
@example([("name", "x"), ("name", "y")], False)
@example([("name", "x"), ("size", 2**53)], False)
def test_straight_into_a_model_is_the_same_or_nothing(members: list[tuple[str, Any]], ascii_only: bool) -> None:
    """Also with duplicate keys, unknown fields, nulls and numbers out of bounds, which `parse` and the model refuse."""
    told = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=ascii_only)}" for name, value in members]
    raw = ("{" + ", ".join(told) + "}").encode()
    found = parse_as(raw, msgspec.json.Decoder(Model).decode)
    try:
        slowly = msgspec.convert(parse(raw), Model)
    except (InvalidInput, msgspec.ValidationError):
        assert found is None
    else:
        assert found in (None, slowly)


def test_the_usual_body_goes_straight_into_its_model() -> None:
    raw = b'{"name": "a: b", "args": {"depth": [1, {"x": ["::", 1.5, true]}]}}'
    found = parse_as(raw, msgspec.json.Decoder(Model).decode)
    assert found == Model("a: b", None, {"depth": [1, {"x": ["::", 1.5, True]}]})


@given(values, st.sampled_from([None, 2]), st.booleans())
def test_parse_gives_what_json_gives(value: Any, indent: int | None, ascii_only: bool) -> None:
    raw = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse(raw) == json.loads(raw)


@given(st.dictionaries(texts, scalars, min_size=1, max_size=4), st.data(), st.booleans())
def test_a_duplicate_key_is_always_found(value: dict[str, Any], data: Any, ascii_only: bool) -> None:
    key = data.draw(st.sampled_from(sorted(value)))
    other = data.draw(scalars)
    inner = json.dumps(value, ensure_ascii=ascii_only)
    raw = f"[{inner[:-1]}, {json.dumps(key, ensure_ascii=ascii_only)}: {json.dumps(other, ensure_ascii=ascii_only)}}}]"
    with pytest.raises(InvalidInput) as caught:
        parse(raw)
    assert caught.value.field == key


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a":1,"a":2}', "a: is there twice"),
        (b'{"a":1,"\\u0061":2}', "a: is there twice"),
        (b'{"a":":","a":"x\\u003a"}', "a: is there twice"),  # an escaped colon hides the lost one from a plain count
        (b'{"x":{"n":9007199254740992}}', "x.n: integers beyond"),
        (b"NaN", "not JSON"),
        (b'"\\ud800"', "not JSON"),
        (b"1e999", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32"),
        (b"[" * 100_000, "nested deeper than 32"),
    ],
)
def test_what_is_refused(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(raw)
    assert says in str(caught.value)


def test_depth_up_to_the_limit() -> None:
    assert parse(b"[" * 32 + b"]" * 32)
