"""Whether all replicas have the same policies in force, judged by their heartbeats. Pure: the clock is passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.signing import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from banksman.enforcer.control import Peer

PATIENCE_S = 5.0
EVERY = "*"
LISTED = 100


def told(versions: Mapping[str, str]) -> dict[str, str]:
    """What a heartbeat says about policies: each version, or with very many of them one digest over all."""
    if len(versions) <= LISTED:
        return dict(versions)
    text = "\n".join(f"{project} {version}" for project, version in sorted(versions.items()))
    return {EVERY: digest(b"policies", text.encode())}


class Agreement:
    """Since when replicas disagree, by project."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def overdue(self, live: Iterable[Peer], now: float) -> list[tuple[str, dict[str, str]]]:
        """(project, replica -> version or "none") of what has differed for longer than `PATIENCE_S`."""
        peers = list(live)
        projects = {project for peer in peers for project in peer.policies}
        found = []
        for project in projects:
            versions = {peer.replica: peer.policies.get(project, "none") for peer in peers}
            if len(set(versions.values())) <= 1:
                self._since.pop(project, None)
            elif now - self._since.setdefault(project, now) > PATIENCE_S:
                found.append((project, versions))
        for project in self._since.keys() - projects:
            del self._since[project]
        return sorted(found)

    def now(self, live: Iterable[Peer]) -> list[str]:
        """The projects whose policy differs at this moment, for however short a time."""
        peers = list(live)
        projects = {project for peer in peers for project in peer.policies}
        return sorted(p for p in projects if len({peer.policies.get(p) for peer in peers}) > 1)
