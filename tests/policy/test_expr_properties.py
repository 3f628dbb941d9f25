"""`expr` and `when`, where both can say it, say the same: yes, no, and that nobody can say."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from banksman.policy.conditions import Expr, parse
from banksman.policy.expr import strict
from banksman.policy.holds import Asked, Facts, Truth, compile_condition

Pair = tuple[str, dict[str, Any]]
SAME: list[Pair] = [
    ("args.n < 3", {"args.n": {"lt": 3}}), ("args.n <= 2.5", {"args.n": {"lte": 2.5}}),
    ("args.n > -1", {"args.n": {"gt": -1}}), ("3 <= args.n", {"args.n": {"gte": 3}}),
    ("args.n == 3", {"args.n": 3}), ("args.n != 3", {"args.n": {"not": 3}}), ("args.n == 2.5", {"args.n": 2.5}),
    ("args.s == 'x'", {"args.s": "x"}), ('args.s != "x"', {"args.s": {"not": "x"}}), ("args.s == ''", {"args.s": ""}),
    ("args.s in ['x', 'y']", {"args.s": ["x", "y"]}), ("args.n in [1, 3, 2.5]", {"args.n": [1, 3, 2.5]}),
    ("args.b == true", {"args.b": True}), ("args.b != false", {"args.b": {"not": False}}), ("args.b", {"args.b": True}),
    ("has(args.n)", {"args.n": {"exists": True}}), ("has(args.d.k)", {"args.d.k": {"exists": True}}),
    ("args.d.k == 'x'", {"args.d.k": "x"}), ("args.n < args.m", {"args.n": {"lt": {"attr": "args.m"}}}),
    ("args.n == args.m", {"args.n": {"is": {"attr": "args.m"}}}), ("resource == 'a/b'", {"resource": "a/b"}),
    ("branch in ['main', 'dev']", {"branch": ["main", "dev"]}), ("subject.role == 'admin'", {"subject.role": "admin"}),
    ("resource.owner == subject.mail", {"resource.owner": {"is": {"attr": "subject.mail"}}}),
    ("time < timestamp('2026-01-01T00:00:00Z')", {"time": {"lt": "2026-01-01T00:00:00Z"}}),
    ("action == 'push'", {"action": "push"}), ("agent != 'a'", {"agent": {"not": "a"}}),
]  # fmt: skip


def put_together(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    several = st.lists(inner, min_size=2, max_size=3)
    return (
        several.map(lambda of: (" && ".join(f"({cel})" for cel, _ in of), {"all": [when for _, when in of]}))
        | several.map(lambda of: (" || ".join(f"({cel})" for cel, _ in of), {"any": [when for _, when in of]}))
        | inner.map(lambda of: (f"!({of[0]})", {"not": of[1]}))
    )


pairs = st.recursive(st.sampled_from(SAME), put_together, max_leaves=6)
scalars = st.sampled_from([0, 1, 3, 3.0, 2.5, -1, "x", "y", "3", "", "é", "x\0", "x" * 70_000, True, False, None])
values = scalars | st.sampled_from([[], ["x"], {}, {"k": "x"}, {"k": None}, {"k": 3}, [{"k": "x"}], float(2**60)])
facts = st.builds(
    Facts,
    st.none() | st.fixed_dictionaries({}, optional=dict.fromkeys("nmsbd", values)),
    st.sampled_from([0.0, 1767225599.5, 1767225600.0, 2e9]),
    st.none() | st.fixed_dictionaries({}, optional={"role": values, "mail": values}),
    st.none() | st.fixed_dictionaries({}, optional={"resource.owner": values, "subject.mail": values}),
)
questions = st.builds(
    Asked, st.just("git"), st.sampled_from(["push", "pull"]), st.sampled_from(["a/b", "a", None]),
    st.sampled_from(["main", "x", None]), st.sampled_from(["a", "b"]), facts,
)  # fmt: skip


def said(cel: str, asked: Asked) -> Truth:
    return compile_condition(Expr(cel, strict(cel).attributes), "git", {})(asked)


@given(pairs, questions)
@settings(max_examples=250, deadline=None)
@example(SAME[7], Asked("git", "push", None, None, "a", Facts({"s": ["x"]})))
@example(SAME[4], Asked("git", "push", None, None, "a", Facts({"n": True})))
def test_they_agree_in_all_three_values(pair: Pair, asked: Asked) -> None:
    cel, when = pair
    one, other = said(cel, asked), compile_condition(parse(when, "git"), "git", {})(asked)
    if one is other:
        return
    # What the evaluator is not given, nobody can say. Nothing else may come between them.
    assert one is None or _unfit(asked), (cel, when, asked.facts)
    assert _unfit(asked), (cel, when, asked.facts, one, other)


def _unfit(asked: Asked) -> bool:
    kept = [asked.facts.args, asked.facts.subject, asked.facts.claims]
    return any(
        "\0" in one or len(one) > 16_384 if isinstance(one, str) else isinstance(one, float) and abs(one) >= 2**53
        for of in kept
        if of
        for one in of.values()
    )


members = st.lists(st.sampled_from(["a", "b", 1, 2.5, True, None, ["a"]]), max_size=4)


@given(members | values, st.sampled_from(["a", "z", 1, True]))
@settings(max_examples=150, deadline=None)
def test_of_members_of_lists_expr_never_says_more(several: Any, wanted: Any) -> None:
    """A list of several kinds: `has` passes over those of another kind, and `in` of an `expr` cannot be worked out then."""
    literal = "true" if wanted is True else repr(wanted)
    asked = Asked("git", "push", None, None, "a", Facts({"l": several}))
    one = said(f"{literal} in args.l", asked)
    other = compile_condition(parse({"args.l": {"has": wanted}}, "git"), "git", {})(asked)
    assert one is other or one is None
