"""One thing has one spelling: what is refused, what is not, and that the fast check is a subset of the slow one."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banksman.policy.normal import (
    PLAIN_ARN,
    PLAIN_BRANCH,
    PLAIN_PATH,
    bad_branch,
    bad_resource,
    bad_text,
    fold_action,
    plain_resource,
)

GOOD = [
    ("git", "acme/billing"), ("git", "acme/.github"), ("git", "a"), ("git", ".hidden"), ("git", "a..b/c."), ("git", "..."),
    ("files", "/"), ("files", "/etc/passwd"), ("files", "notes (1).txt"), ("files", "100%"), ("files", "a b/c d"),
    ("files", "\u00e9t\u00e9/\u65e5\u672c.txt"), ("files", "~/x"), ("email", "ann@acme.example"), ("slack", "#payments"),
    ("files", "file_path:landlord-notices.txt"), ("web", "https://acme.example/a/b?q=1"), ("web", "https://acme.example"),
    ("web", "https://acme.example:8443/x"), ("web", "http://[::1]:80a"[:12]), ("web", "file:///etc/hosts"),
    ("web", "s3://bucket/key"), ("http", "api.acme.example/v1"), ("http", "api.acme.example:8080"), ("http", "/v1/x"),
    ("aws", "arn:aws:s3:::b/k"), ("aws", "arn:aws:s3:::b//k/"), ("aws", "arn:aws:s3:::b/.k/..k/k.."),
    ("aws", "arn:aws:iam::123456789012:user/ann"), ("aws", "arn:aws:logs:eu-west-1:1:log-group:/aws/x:*"[:-2]),
    ("other", "arn:aws:s3:::b/k"), ("aws", "bucket/key"), ("git", "acme/git"), ("git", "github.com/acme/billing"),
]  # fmt: skip

BAD = [
    ("git", "acme/billing.git", "without it"), ("git", "acme/billing.git/x", "without it"),
    ("git", "arn:aws:s3:::b/k", "address"),
    ("git", "https://github.com/acme/billing", "is an address"), ("git", "git@github.com:acme/billing", "is an address"),
    ("git", "", "is empty"), ("git", "/acme/", "empty segment"), ("git", "//acme", "empty segment"),
    ("git", "acme//x", "empty segment"), ("git", "acme/", "empty segment"), ("git", ".", ". or .. segment"),
    ("git", "..", ". or .. segment"), ("git", "a/..", ". or .. segment"), ("git", "/../a", ". or .. segment"),
    ("git", "./a", ". or .. segment"), ("git", "a/./b", ". or .. segment"), ("files", "//", "empty segment"),
    ("git", "a\\b", "backslash"), ("git", "a%2fb", "% escape"), ("git", "a%u002fb", "% escape"), ("git", "%%2f", "% escape"),
    ("git", "a\tb", "U+0009"), ("git", "a\x7fb", "U+007F"), ("git", "a\x85b", "U+0085"), ("git", "a\u2028b", "U+2028"),
    ("git", "a\ufeffb", "U+FEFF"), ("git", "a\u202eb", "U+202E"), ("git", "a\u00adb", "U+00AD"),
    ("git", "a\U000e0041b", "U+E0041"), ("git", "a\ud800b", "U+D800"), ("git", "e\u0301", "normal form C"),
    ("git", "\u212a", "normal form C"), ("git", "\u2126", "normal form C"),
    ("web", "HTTPS://acme.example", "scheme in upper case"), ("web", "https://Acme.example/x", "not in lower case"),
    ("web", "https://acme.example./x", "trailing dot"), ("web", "https://acme..example/x", "empty labels"),
    ("web", "https://ann@acme.example/x", "user names"), ("web", "https://acme.example:443/x", "the port that https has"),
    ("web", "http://acme.example:80", "the port that http has"), ("web", "https:///x", "empty labels"),
    ("web", "https://acme.example/", "empty segment"), ("web", "https://acme.example/a/../b", ". or .. segment"),
    ("web", "https://acme.example//b", "empty segment"), ("http", "API.acme.example/v1", "not in lower case"),
    ("http", "api.acme.example./v1", "trailing dot"), ("http", ".acme.example", "empty labels"),
    ("aws", "arn:aws:s3", "six parts"), ("aws", "arn:", "six parts"), ("aws", "arn:aws:s3:::", "six parts"),
    ("aws", "arn:aws:s3:::..", ". or .. segment"), ("aws", "arn:aws:s3:::b/../k", ". or .. segment"),
    ("web", "https://evil.example?.acme.example/x", "a query"), ("http", "evil.example?.acme.example/x", "a query"),
    ("web", "https://*.acme.example/x", "lower case"), ("http", "*", "lower case"), ("http", "**", "lower case"),
    ("web", "http://2852039166/x", "IP address"), ("web", "http://0xa9fea9fe/x", "IP address"),
    ("web", "http://169.254.43518/x", "IP address"), ("web", "http://0251.254.169.254/x", "IP address"),
    ("web", "http://169.254.169.254.1/x", "IP address"), ("http", "127.1:8080/x", "IP address"),
    ("web", "http://[0:0:0:0:0:0:0:1]/x", "IP address"), ("web", "http://[::0001]:8/x", "IP address"),
    ("web", "http://[::ffff:a9fe:a9fe]/x", "IP address"), ("web", "http://[::ffff:169.254.169.254]/x", "IP address"),
    ("web", "http://acme.example:080/x", "plain number"), ("web", "http://acme.example:/x", "plain number"),
    ("web", "http:acme.example/x", "without its //"), ("web", "HTTPS:/acme.example/x", "without its //"),
    ("files", "file:/etc/passwd", "without its //"), ("files", "/etc/passwd ", "white space"),
    ("git", "acme/billing\u00a0", "white space"), ("git", " acme/billing", "white space"),
    ("git", "acme/bill\u3164ing", "U+3164"), ("git", "acme/billing\ufe0f", "U+FE0F"), ("git", "a\u034fb", "U+034F"),
    ("aws", "arn:aws:s3:::b/k ", "white space"),
    ("aws", "arn:aws:s3:::b/%2e", "% escape"), ("aws", "arn:aws:s3:::b\\k", "backslash"),
]  # fmt: skip


@pytest.mark.parametrize(("service", "resource"), GOOD, ids=[str(at) for at in range(len(GOOD))])
def test_one_spelling(service: str, resource: str) -> None:
    assert bad_resource(service, resource) is None


@pytest.mark.parametrize(("service", "resource", "words"), BAD, ids=[str(at) for at in range(len(BAD))])
def test_more_than_one(service: str, resource: str, words: str) -> None:
    assert words in (bad_resource(service, resource) or "")
    assert not plain_resource(service)(resource)


pieces = st.lists(
    st.sampled_from(
        ["a", "Z", "9", "/", "//", ".", "..", ":", "arn:", "aws", "%41", "%", "\\", " ", "\u00e9", "\u0301", "\n", "\u200b",
         "https://", "x.y", "*", "?", "$(", "~", "#", "@", "-", "_", "arn:aws:s3:::", "b/k", "://"]
    ),
    max_size=8,
).map("".join)  # fmt: skip
texts = pieces | st.text(max_size=12)


BRANCHES = [
    "main",
    "feature/a",
    "release/1.2",
    "v1.0",
    "x-1",
    "fix/#12",
    "a+b",
    "@scope/x",
    "dependabot/npm_and_yarn/@types/node-1",
]


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_by_its_name(branch: str) -> None:
    assert bad_branch(branch) is None
    assert bad_branch(branch, pattern=True) is None


@pytest.mark.parametrize(
    "branch",
    ["refs/heads/main", "heads/main", "HEAD:main", "x:main", ":main", "+main", "-main", "/main", "main ", "main~0", "main^0",
     "main@{0}", "@", "HEAD", "ma in", "ma[i]n", "*", "feature/*", "mai?"],
)  # fmt: skip
def test_a_branch_by_another_name(branch: str) -> None:
    """git would understand each of these, and some of them as main."""
    assert bad_branch(branch)
    assert not PLAIN_BRANCH(branch)


@pytest.mark.parametrize(
    ("service", "pattern"),
    [("http", "*"), ("http", "**"), ("http", "*.acme.example/**"), ("web", "https://*.acme.example:*/**"), ("web", "https://**"),
     ("web", "http://10.*.*.*/**"), ("web", "http://169.254.169.254/**"), ("web", "http://acme.example:8???/x")],
)  # fmt: skip
def test_patterns_of_hosts_have_wildcards(service: str, pattern: str) -> None:
    assert bad_resource(service, pattern, pattern=True) is None
    assert bad_branch("feature/**", pattern=True) is None


@given(texts)
@settings(max_examples=2000, deadline=None)
def test_what_is_plain_is_in_its_one_spelling(text: str) -> None:
    for service in ("git", "aws", "http"):
        if plain_resource(service)(text):
            assert bad_resource(service, text) is None
    if PLAIN_BRANCH(text):
        assert bad_branch(text) is None
    if PLAIN_ARN(text):
        assert text.startswith("arn:")


@given(texts)
@settings(max_examples=1000, deadline=None)
def test_what_is_accepted_is_normal_and_its_segments_are_real(text: str) -> None:
    if bad_text(text) is None:
        assert unicodedata.normalize("NFC", text) == text
        assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in text)
    if bad_branch(text) is None:
        assert all(segment not in {"", ".", ".."} for segment in text.removeprefix("/").split("/"))


@given(st.sampled_from(["aws", "git", "AWS"]), texts)
@settings(max_examples=500, deadline=None)
def test_normalisation_is_idempotent(service: str, action: str) -> None:
    once = fold_action(service, action)
    assert fold_action(service, once) == once
    assert (bad_text(once) is None) == (bad_text(action) is None)


def test_only_ascii_is_folded() -> None:
    """No other letter becomes an ASCII one: U+0130 lower-cased begins with an i."""
    assert fold_action("aws", "\u0130am:Get") == "\u0130am:Get"
    assert fold_action("git", "PUSH") == "PUSH"


@pytest.mark.parametrize(
    "text", ["a" * 4096, "a/" * 2047 + "a", "a." * 2048, "arn:aws:s3:::" + "a/" * 2000 + "\\", "/" * 4096]
)
def test_checks_take_time_in_proportion(text: str) -> None:
    began = time.perf_counter()
    for _ in range(100):
        PLAIN_PATH(text)
        PLAIN_ARN(text)
        bad_resource("aws", text)
        bad_resource("http", text)
    assert time.perf_counter() - began < 1.0
