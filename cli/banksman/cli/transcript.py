"""A session for people: the header, what is not as it should be, then a line a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from banksman.cli import show, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Step = Mapping[str, Any]

CALLS = ("tool.call", "api.request")


@dataclass
class Line:
    """A step, or a call with the decision and the result that belong to it."""

    step: Step
    decision: Step | None = None
    result: Step | None = None
    marks: list[str] = field(default_factory=list)
    under: bool = False
    """It belongs to the call above."""
    more: bool = False
    """It only has more text of what stands in the call's line."""


def tell(told: Mapping[str, Any]) -> None:
    """Print it all."""
    header = told["header"]
    run = f", in the replay {header['replay']}" if header["replay"] else ""
    show.say(f"session {header['session']} of {header['agent']}{run}", "bold")
    show.pairs(_about(header))
    for wrong in warnings(told):
        show.say(wrong, "red")
    print()
    lines = merge(told["steps"])
    marked = any(line.marks for line in lines)
    columns = ("#", "time (UTC)", "what", "decision", "rule", "result", ">took", ">tokens", ">cost")
    show.table(
        (*columns, "marks") if marked else columns,
        [row if marked else row[:-1] for row in _rows(lines, told["gaps"], header["started"])],
        empty="nothing is recorded of it",
    )


def merge(steps: Iterable[Step]) -> list[Line]:
    """Steps -> lines. Only what is as it should be goes into another step's line; the rest is told by itself."""
    lines: list[Line] = []
    call: Line | None = None
    for step in steps:
        marks = words.marks(step)
        if step["gap"]:
            call = None  # what is missing stood here: nothing is joined over it
        if step["kind"] in CALLS:
            call = Line(step, marks=marks)
            lines.append(call)
            continue
        of_call = call is not None and step["call"] == (call.step["call"] or call.step["id"])
        if not of_call:
            call = None
        if call is not None and step["kind"] == "decision" and call.decision is None and not marks:
            call.decision = step
        elif call is not None and step["kind"] == "tool.result" and call.result is None and not marks:
            call.result = step
            if step["error"]:
                lines.append(Line(step, under=True, more=True))
        else:
            lines.append(Line(step, under=of_call, marks=marks))
    return lines


def warnings(told: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what is missing, doubtful or in force against it."""
    header = told["header"]
    for control in header["controls"]:
        yield f"{control['kind']} by {control['by']} at {show.moment(control['at'])}: {control['reason']}"
    if header["missing"]:
        many = header["missing"]
        yield f"{show.count(many, 'record')} {'is' if many == 1 else 'are'} missing (never arrived, or deleted)"
    if header["unverified"]:
        yield f"{show.count(header['unverified'], 'step')} unverified: nobody of ours signed that"
    if header["id_reused"]:
        yield f"{show.count(header['id_reused'], 'step')} with an id that was used for other content, too"
    if told["repeats"]:
        yield f"{show.count(len(told['repeats']), 'number')} used for two different records by the same source"
    if header["voided"]:
        yield f"{show.count(header['voided'], 'decision')} recorded but never answered as such (the caller got a 503)"
    if header["late"]:
        yield f"{show.count(header['late'], 'step')} late or with a wrong clock"


def _about(header: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "agent", f"{header['agent']}, project {header['project']}, owner {header['owner'] or 'unknown'}"
    versions = header["policy_versions"]
    yield "policy", ", then ".join(versions) if versions else "none decided anything"
    ended = f" ({header['status']})" if header["status"] else ""
    if header["ended"] and header["state"] in ("running", "idle"):
        ended = f", again after it had ended{ended}"
    yield "state", f"{header['state']}{ended}{': ' + show.short(header['error']) if header['error'] else ''}"
    took = "took" if header["ended"] else "so far"
    yield "started", f"{show.moment(header['started'])}, {took} {show.seconds(header['duration_s'] or 0)}"
    decided = f"{header['allowed']} allow, {header['denied']} deny, {header['sent_to_approval']} approve"
    yield "decisions", f"{decided} of {show.count(header['actions'], 'action')}"
    unpriced = f", {show.count(header['unpriced_calls'], 'call')} unpriced" if header["unpriced_calls"] else ""
    yield "tokens", f"{header['tokens']:,}"
    yield "cost", f"{words.money(header['cost_usd']) or 'not known'}{unpriced}"
    yield "sources", ", ".join(header["sources"])


def _rows(lines: Iterable[Line], gaps: Iterable[Mapping[str, Any]], day: str) -> Iterator[tuple[object, ...]]:
    waiting = sorted(gaps, key=lambda gap: gap["n"])
    for line in lines:
        while waiting and waiting[0]["n"] <= line.step["n"]:
            yield _gap(waiting.pop(0))
        yield ("" if line.under else line.step["n"], words.clock(line.step["time"], day), *_said(line))
    for gap in waiting:
        yield _gap(gap)


def _said(line: Line) -> tuple[object, ...]:
    """The columns from `what` on."""
    step = line.step
    what = ("· " if line.under else "") + words.what(step)
    if line.more:
        return (what, *[""] * 7)
    decided = line.decision or step
    done = line.result or ({} if step["kind"] in CALLS else step)
    parts = [one for one in (step, line.decision, line.result) if one is not None]
    costs = [one["cost_usd"] for one in parts if one["cost_usd"] is not None]
    return (
        what,
        decided["decision"],
        words.ruling(decided) if decided["kind"] == "decision" else "",
        done.get("status"),
        words.milliseconds(done.get("duration_ms")),
        words.number(sum(one["tokens"] or 0 for one in parts)),
        words.money(sum(costs)) if costs else "",
        ", ".join(line.marks),
    )


def _gap(gap: Mapping[str, Any]) -> tuple[object, ...]:
    missing = show.count(gap["missing"], "record")
    text = f"… {missing} missing here: {gap['source']} numbered {gap['after'] + 1} to {gap['before'] - 1}"
    return ("", "", show.Cell(text, "red"), "", "", "", "", "", "", "")
