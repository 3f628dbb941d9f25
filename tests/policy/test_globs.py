"""What a pattern means, one line each, and that no pattern can be made to take long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.worlds import glob, path, same_depth

from banksman.policy.globs import Custom, compile_patterns

PATHS = [
    # pattern, matches, does not match
    ("acme/billing", ["acme/billing"], ["acme/billing2", "ACME/billing", "acme", "x/acme/billing"]),
    ("acme/*", ["acme/a", "acme/.x"], ["acme", "acme/a/b", "acmes/a", "x/acme/a"]),
    ("*", ["a", "a.b"], ["a/b", "/a"]),
    ("*.csv", ["a.csv", ".csv"], ["a/b.csv", "a.csv.gz"]),
    ("a*b", ["ab", "axb"], ["a/b", "a", "b", "aab/b"]),
    ("aXa*aXa", ["aXaaXa", "aXa-aXa"], ["aXa"]),
    ("a?c", ["abc", "a\u00e9c"], ["ac", "abbc", "a/c"]),
    ("**", ["a", "a/b/c", "/a"], []),
    ("acme/**", ["acme/a", "acme/a/b"], ["acme", "acmes/a"]),
    ("**/x", ["x", "a/x", "a/b/x"], ["ax", "x/a"]),
    ("a/**/x", ["a/x", "a/b/x", "a/b/c/x"], ["ax", "a/bx", "x"]),
    ("a**x", ["ax", "a/b/x", "abx"], ["bx"]),
    ("release/v*.*", ["release/v1.2", "release/v."], ["release/v1", "release/v1/2.3"]),
    ("*/*", ["a/b"], ["a", "a/b/c"]),
    ("a.b+c", ["a.b+c"], ["axb+c", "a.bbc"]),
    ("/etc/**", ["/etc/passwd", "/etc/a/b"], ["etc/passwd", "/etc"]),
    ("*.acme.example/**", ["api.acme.example/v1/x"], ["acme.example/v1", "evil/x.acme.example/v1"]),
]

ARNS = [
    (
        "arn:aws:s3:::data/*",
        ["arn:aws:s3:::data/a", "arn:aws:s3:::data/a/b:c"],
        ["arn:aws:s3:::data", "arn:aws:s3:::data2/a"],
    ),
    ("arn:aws:s3:::*", ["arn:aws:s3:::data/a/b"], ["arn:aws:s3:eu::data"]),
    ("arn:aws:s3:::d?ta", ["arn:aws:s3:::d/ta", "arn:aws:s3:::d:ta"], ["arn:aws:s3:::dta"]),
    ("arn:aws:s3:::a*c/*x", ["arn:aws:s3:::a/b/c/d/x", "arn:aws:s3:::ac/x"], ["arn:aws:s3:::acx", "arn:aws:s3:::ac/y"]),
    ("arn:aws:*:::x", ["arn:aws:s3:::x"], ["arn:aws:s3:eu::x", "arn:aws:a:b:c:x"]),
    ("arn:aws:sqs:eu-*:1?3:q", ["arn:aws:sqs:eu-west-1:123:q"], ["arn:aws:sqs:us-1:123:q", "arn:aws:sqs:eu-w:13:q"]),
    ("arn:**:sqs:::q", ["arn:aws:sqs:::q"], ["arn:a:b:sqs:::q"]),
    ("arn:aws:sqs:**:1:q", ["arn:aws:sqs:eu:1:q"], ["arn:aws:sqs:eu:2:1:q"]),
    ("*", ["arn:aws:s3:::data/a", "x/y"], []),
    ("**", ["arn:aws:s3:::data/a"], []),
    ("*/a", ["arn:aws:s3:::data/a"], ["arn:aws:s3:::data/b/a"]),
]

ACTIONS = [
    ("*", ["push", "s3:GetObject", "a/b"], []),
    ("s3:*", ["s3:GetObject", "s3:"], ["s3", "s3x:Get"]),
    ("*:read", ["charges:read", "a:b:read", "a/b:read"], ["read", "charges:reads"]),
    ("get_*_by_?", ["get_user_by_i"], ["get_user_by_id", "get_by_i"]),
]


def check(custom: Custom, service: str, table: list[tuple[str, list[str], list[str]]]) -> None:
    for pattern, yes, no in table:
        matches = compile_patterns(custom, service, (pattern,))
        assert [value for value in yes if not matches(value)] == [], pattern
        assert [value for value in no if matches(value)] == [], pattern


def test_paths() -> None:
    check(Custom.RESOURCE, "git", PATHS)
    check(Custom.BRANCH, "git", PATHS)


def test_arns() -> None:
    check(Custom.RESOURCE, "aws", ARNS)


def test_actions() -> None:
    check(Custom.ACTION, "any", ACTIONS)


def test_a_lone_star_is_everything_for_aws_resources_only() -> None:
    assert compile_patterns(Custom.RESOURCE, "aws", ("*",))("a/b")
    assert not compile_patterns(Custom.BRANCH, "aws", ("*",))("a/b")
    assert not compile_patterns(Custom.RESOURCE, "git", ("*",))("a/b")


def test_a_list_matches_what_any_of_it_matches() -> None:
    lists = [
        ("a", "b"),
        ("a", "b/**"),
        ("a", "b/*"),
        ("a", "b/**", "c*", "d/*/e*"),
        ("b/**", "c/**"),
        ("x*", "b?"),
        ("a",),
    ]
    values = ["a", "b", "b/c", "b/c/d", "c", "cc", "d/x/ee", "d/e", "c/d", "bx", "xx"]
    for patterns in lists:
        together = compile_patterns(Custom.RESOURCE, "git", patterns)
        alone = [compile_patterns(Custom.RESOURCE, "git", (pattern,)) for pattern in patterns]
        for value in values:
            assert bool(together(value)) == any(one(value) for one in alone), (patterns, value)


patterns = st.lists(st.sampled_from(["a", "b", "/", "*", "**", "?", "ab", "."]), min_size=1, max_size=7).map("".join)
values = st.lists(st.sampled_from(["a", "b", "/", "ab", "."]), max_size=8).map("".join)


@given(patterns, values)
@settings(max_examples=3000, deadline=None)
def test_paths_against_the_slow_way(pattern: str, value: str) -> None:
    segments = value.removeprefix("/").split("/")
    if "***" in pattern or "" in pattern.split("/") or any(segment in {"", ".", ".."} for segment in segments):
        return  # not in a policy, or not canonical
    slow = path(pattern.split("/"), value.split("/")) if "**" in pattern else same_depth(pattern, value)
    assert bool(compile_patterns(Custom.BRANCH, "git", (pattern,))(value)) == slow


@given(patterns.filter(lambda pattern: "***" not in pattern), values)
@settings(max_examples=2000, deadline=None)
def test_actions_against_the_slow_way(pattern: str, value: str) -> None:
    assert bool(compile_patterns(Custom.ACTION, "x", (pattern,))(value)) == glob(pattern, value, crossing=True)


@pytest.mark.parametrize(
    "pattern",
    ["*a*a*a*a*a*a*a*a*b", "**a**a**a**a**a**a**a**a**b", "**/a**/a*/**a*?*b", "*" + "?" * 15, "a?" * 15 + "*b"],
)
def test_no_pattern_takes_long(pattern: str) -> None:
    """16 wildcards against 4,096 characters that almost match: a backtracking matcher would not come back."""
    matches = compile_patterns(Custom.RESOURCE, "git", (pattern,))
    began = time.perf_counter()
    for value in ("a" * 4096, "a/" * 2047 + "a", "aa/a" * 1024):
        matches(value)
    assert time.perf_counter() - began < 0.5
