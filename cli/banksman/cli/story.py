"""One session as the console tells it: all pages of it, of one moment, or a clear word about why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from banksman.cli import client, words
from banksman.errors import BanksmanError, InvalidInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PAGE = 5000
TRIES = 3


@dataclass(frozen=True)
class Asked:
    """Which session."""

    session: str
    agent: str | None = None
    project: str | None = None
    replay: str | None = None
    raw: bool = False


class Changed(Exception):
    """What was received before the first page changed meanwhile: begin again."""


def pages(console: client.Client, asked: Asked) -> Iterator[client.Answer]:
    """The pages, in order. Changed: begin again. InvalidInput: no such session, or it is not clear which."""
    query: dict[str, Any] = {"agent": asked.agent, "project": asked.project, "replay": asked.replay, "limit": PAGE}
    query["raw"] = 1 if asked.raw else None
    cursor = None
    while True:
        try:
            page = console.get(f"/v1/sessions/{client.part(asked.session)}", query | {"cursor": cursor})
        except client.Problem as problem:
            if problem.status == 404:
                raise InvalidInput(_nowhere(console, asked)) from None
            if problem.status == 409 and "candidates" in problem.body:
                raise InvalidInput(_ambiguous(asked, problem.body["candidates"])) from None
            if problem.status == 409 and cursor is not None:
                raise Changed from None
            raise
        yield page
        cursor = page["next"]
        if cursor is None:
            return


def whole(console: client.Client, asked: Asked) -> dict[str, Any]:
    """`{header, steps, gaps, repeats}` of all pages."""
    for _ in range(TRIES):
        steps: list[Mapping[str, Any]] = []
        try:
            for page in pages(console, asked):
                steps += page["steps"]
        except Changed:
            continue
        return {"header": page["header"], "steps": steps, "gaps": page["gaps"], "repeats": page["repeats"]}
    raise still_changing(asked)


def still_changing(asked: Asked) -> Unavailable:
    """What is said when TRIES were not enough."""
    return Unavailable(f"session {asked.session} is being archived at this moment; try again")


def _ambiguous(asked: Asked, candidates: Sequence[Mapping[str, Any]]) -> str:
    agents = sorted({str(one["agent"]) for one in candidates})
    if len(agents) > 1:
        return f"session {asked.session} is one of {words.listed(agents)}: say whose with --agent"
    runs = sorted(str(one["replay"]) for one in candidates if one["replay"])
    if len(runs) > 1:
        return f"session {asked.session} of {agents[0]} is in the replays {words.listed(runs)}: say which with --replay"
    projects = sorted({str(one["project"]) for one in candidates})
    return f"session {asked.session} of {agents[0]} is in {words.listed(projects)}: say which with --project"


def _nowhere(console: client.Client, asked: Asked) -> str:
    whose = f" of {asked.agent}" if asked.agent else ""
    where = f" in the replay {asked.replay}" if asked.replay else ""
    query = {"agent": asked.agent, "since": "30d", "limit": 1000, "replay": asked.replay or "*"}
    try:
        like = words.guess(asked.session, (one["session"] for one in console.get("/v1/sessions", query)["sessions"]))
    except BanksmanError:  # the answer is "there is none" all the same
        like = ""
    return f"there is no session {asked.session!r}{whose}{where}{like}; `banksman sessions` lists them"
