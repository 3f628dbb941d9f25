"""How records, amounts and marks are said, the same in every command. Everything here goes through `show.safe` when printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from banksman.cli import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_ARGS = 80
MOST_TEXT = 120
_PLAIN_REASONS = ("", "allowed", "approved", "approval_required", "never", "guardrail")  # the rule's name says it


def operation(of: Mapping[str, Any]) -> str:
    """`git push acme/billing main`: what there is of service, action, resource and branch; and whom it is about, first."""
    named = (of.get(name) for name in ("service", "action", "resource", "branch"))
    whole = " ".join(show.short(part) for part in named if part)
    return f"for {show.short(of['subject'])}: {whole}" if of.get("subject") else whole


def what(step: Mapping[str, Any]) -> str:
    """One line that says what a record is about, without its decision, status, tokens, cost and duration."""
    kind: str = step["kind"]
    if kind in ("tool.call", "api.request"):
        args = step.get("args")
        said = f" {show.short(json.dumps(args, ensure_ascii=False), MOST_ARGS)}" if args else ""
        return operation(step) + said
    if kind in ("prompt", "note"):
        return f"{kind}: {show.short(step.get('text') or '(without a text)', MOST_TEXT)}"
    if kind == "model.call":
        return f"model {show.short(step.get('model') or '(not named)')}"
    if kind.startswith("approval."):
        return _approval(step)
    if kind == "decision":
        return operation(step) or "decision"
    if kind == "decision.void":
        return "the decision before was never answered: its caller got a 503"
    error = step.get("error")
    if kind == "tool.result":
        return f"result: {show.short(error, MOST_TEXT)}" if error else "result"
    return kind.replace(".", " ") + (f": {show.short(error, MOST_TEXT)}" if error else "")


def _approval(step: Mapping[str, Any]) -> str:
    parts = [step["kind"].replace("approval.", "approval ")]
    if step.get("approver"):
        parts.append(f"by {step['approver']}")
    if step["kind"] == "approval.requested" and step.get("expires_at"):
        parts.append(f"until {show.moment(step['expires_at'])[:19]}")
    return " ".join(parts) + (f": {show.short(step['text'], MOST_TEXT)}" if step.get("text") else "")


def ruling(step: Mapping[str, Any]) -> str:
    """Which rule said so, and the reason where the rule does not say it all."""
    rule, reason = step.get("rule") or "", step.get("reason") or ""
    shadow = f", shadow: would {step['shadow']}" if step.get("shadow") else ""
    said = rule if reason in (*_PLAIN_REASONS, rule) else f"{rule} ({reason})" if rule else reason
    return said + shadow


def marks(step: Mapping[str, Any]) -> list[str]:
    """What is not as it should be about a record."""
    found = []
    if not step.get("verified", True):
        found.append("unverified")
    if step.get("late"):
        found.append("clock skew" if step["late"] == "skew" else str(step["late"]))
    found += [word for name, word in (("id_reused", "id reused"), ("voided", "voided")) if step.get(name)]
    if step.get("priced") == "unpriced":
        found.append("unpriced")
    return found


def clock(time: str | None, day: str | None) -> str:
    """The time of day, where it is the day of `day`; else with its date."""
    said = show.moment(time)
    return said[11:] if day and said[:10] == show.moment(day)[:10] else said


def money(usd: float | None) -> str:
    """`$3.20`, `$0.0042`; "" when it is not known."""
    if usd is None:
        return ""
    return f"${usd:,.2f}" if usd == 0 or usd >= 0.1 else f"${usd:.4f}"


def number(value: float | None) -> str:
    """`120,000`; "" for none and for 0: a column of zeros hides the numbers in it."""
    return f"{value:,}" if value else ""


def milliseconds(value: float | None) -> str:
    """`850 ms`, `3.2 s`; "" for none."""
    return "" if value is None else show.seconds(value / 1000)


def listed(words: Iterable[str], last: str = "and") -> str:
    """`a, b and c`."""
    every = list(words)
    return f" {last} ".join([", ".join(every[:-1]), every[-1]] if len(every) > 1 else every)


def guess(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when one of `known` is much like `name`."""
    import difflib

    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
