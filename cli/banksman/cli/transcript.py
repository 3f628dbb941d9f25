"""A session for people: the header, what is not as it should be, then a line a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from banksman.cli import show, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Step = Mapping[str, Any]

CALLS = ("tool.call", "api.request")


@dataclass
class Line:
    """A step, or a call with the decision and the result that belong to it."""

    step: Step
    decision: Step | None = None
    result: Step | None = None
    under: bool = False
    """It belongs to the call above."""
    marks: list[str] = field(default_factory=list)


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
        [row if marked else row[:-1] for row in _rows(lines, told["gaps"])],
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
        of_call = call is not None and step["call"] is not None and step["call"] == call.step["id"]
        if not of_call:
            call = None
        if call is not None and step["kind"] == "decision" and call.decision is None and not marks:
            call.decision = step
        elif call is not None and step["kind"] == "tool.result" and call.result is None and not marks:
            call.result = step
            if step["error"]:
                lines.append(Line(step, under=True))
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
    yield "state", f"{header['state']}{ended}{': ' + show.short(header['error']) if header['error'] else ''}"
    yield "started", f"{show.moment(header['started'])}, took {show.seconds(header['duration_s'] or 0)}"
    decided = f"{header['allowed']} allow, {header['denied']} deny, {header['sent_to_approval']} approve"
    yield "decisions", f"{decided} of {show.count(header['actions'], 'action')}"
    unpriced = f", {show.count(header['unpriced_calls'], 'call')} unpriced" if header["unpriced_calls"] else ""
    yield "tokens", f"{header['tokens']:,}"
    yield "cost", f"{words.money(header['cost_usd']) or 'not known'}{unpriced}"
    yield "sources", ", ".join(header["sources"])


def _rows(lines: Iterable[Line], gaps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[object, ...]]:
    waiting = sorted(gaps, key=lambda gap: gap["n"])
    day = ""
    for line in lines:
        step = line.step
        while waiting and waiting[0]["n"] <= step["n"]:
            yield _gap(waiting.pop(0))
        moment = show.moment(step["time"])
        time = moment[11:] if moment[:10] == day else moment
        day = moment[:10]
        decision, result = line.decision or step, line.result or step
        of_result = line.result is not None or step["kind"] not in CALLS
        yield (
            "" if line.under else step["n"],
            time,
            ("· " if line.under else "") + words.what(step),
            decision["decision"] if line.decision or step["kind"] not in CALLS else step["decision"],
            words.ruling(decision),
            result["status"]
            if of_result and not (line.under and step["kind"] == "tool.result" and not line.marks)
            else "",
            words.milliseconds(result["duration_ms"]) if of_result else "",
            words.number(sum(one["tokens"] or 0 for one in _parts(line))),
            words.money(_sum(one["cost_usd"] for one in _parts(line))),
            ", ".join(line.marks),
        )
    for gap in waiting:
        yield _gap(gap)


def _parts(line: Line) -> list[Step]:
    return [one for one in (line.step, line.decision, line.result) if one is not None]


def _sum(costs: Iterable[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def _gap(gap: Mapping[str, Any]) -> tuple[object, ...]:
    missing = show.count(gap["missing"], "record")
    text = f"… {missing} missing here: {gap['source']} numbered {gap['after'] + 1} to {gap['before'] - 1}"
    return ("", "", show.Cell(text, "red"), "", "", "", "", "", "", "")
