"""The policies that this replica has in force, from its own folder, and what it puts on the log about them.

What is in force changes at once and by itself; telling the others comes after, and is tried until it is acknowledged.
A version that `control` already knows is not told again: the log would grow with every start of every replica.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.enforcer.record import stamp
from banksman.errors import Unavailable
from banksman.events import PolicyLoaded, PolicyRejected, PolicyRemoved
from banksman.policy.folder import Change, InForce, PolicyFolder, Rejection, Removed
from banksman.stamps import rfc3339

if TYPE_CHECKING:
    from banksman.enforcer.replica import Replica
    from banksman.events import Control
    from banksman.policy.compile import Bundle
    from banksman.policy.rules import Policy

RETRY_S = 0.5
MOST_NAMED = 20
_log = logging.getLogger("banksman")


def in_shadow(policy: Policy) -> list[str]:
    """What of a policy that is enforced is not: entries of agents, and rules, by their names; so many of them at most."""
    found = [name for name, entry in policy.agents.items() if entry.mode == "shadow"]
    return (found + [rule.id for rule in policy.every_rule() if rule.shadow])[:MOST_NAMED]


class Policies:
    """One watched folder. `bundle` is what is in force; `generation` goes up whenever that changes."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._folder = PolicyFolder(Path(replica.settings.policies))
        self.bundle: Bundle = self._folder.bundle
        self.generation = 0
        self.read_once = asyncio.Event()
        """Set when the folder was looked at for the first time: before that nothing may be decided."""
        self._files: dict[str, tuple[InForce, str]] = {}
        self._untold: dict[tuple[str, str], InForce | Rejection | Removed] = {}
        self._mended: set[str] = set()
        """Files that the log says do not load, and that load here, or are gone: broken again, they are news again."""
        self._news = asyncio.Event()

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """The files that do not load at the moment."""
        return self._folder.rejections

    def versions(self) -> dict[str, str]:
        """Project -> the policy version in force."""
        return self.bundle.versions()

    def in_force(self) -> list[dict[str, Any]]:
        """What `/v1/status` says about each policy in force, by project."""
        told = []
        for project, compiled in sorted(self.bundle.policies.items()):
            loaded, since = self._files[project]
            policy = compiled.policy
            told.append(
                {
                    "project": project,
                    "policy_version": policy.version,
                    "file": loaded.file,
                    "mode": "shadow" if policy.shadow else "enforce",
                    "shadow": in_shadow(policy),
                    "owner": policy.owner,
                    "since": since,
                }
            )
        return told

    async def watch(self) -> None:
        """The task that follows the folder. Never returns."""
        await self._folder.watch(self._changed)

    async def _changed(self, change: Change) -> None:
        self.bundle = change.bundle
        self.generation += 1
        now = rfc3339()
        for loaded in change.loaded:
            self._files[loaded.project] = (loaded, now)
            self._untold["policy", loaded.project] = loaded
            _log.info("policy %s is in force (%s)", loaded.policy_version, loaded.file)
        for removed in change.removed:
            self._files.pop(removed.project, None)
            self._untold["policy", removed.project] = removed
            _log.warning("policy %s went away: everything of %s is denied", removed.policy_version, removed.project)
        self._notice_mended()
        for rejected in change.rejected:
            self._untold["rejected", rejected.file] = rejected
            _log.warning("policy rejected, what was in force stays: %s", rejected)
        self.read_once.set()
        self._news.set()
        self._replica.hurry.set()

    async def tell(self) -> None:
        """The task that puts the news on the log. Never returns."""
        await self._replica.control.caught_up.wait()  # only now it is known what the log says already
        self._notice_mended()
        while True:
            await self._news.wait()
            self._news.clear()
            while self._untold:
                about, news = next(iter(self._untold.items()))
                event = self._event(news)
                if event is not None:
                    try:
                        await self._replica.records.control(event)
                    except Unavailable as error:
                        _log.warning("news of policies are not on record yet: %s", error)
                        await asyncio.sleep(RETRY_S)
                        continue
                if isinstance(news, Rejection) and event is not None:
                    self._mended.discard(news.file)
                    self._finding(news)
                if self._untold.get(about) is news:  # else there is newer news of the same
                    del self._untold[about]

    def _event(self, news: InForce | Rejection | Removed) -> Control | None:
        """What is to be written, with an id and a time of this moment, or None when the log says so already."""
        state, own = self._replica.state, stamp(self._replica.records.source)
        if isinstance(news, Removed):
            if news.project not in state.loaded:
                return None
            return PolicyRemoved(
                **own, project=news.project, policy_version=news.policy_version, replica=self._replica.id
            )
        if isinstance(news, Rejection):
            told = state.rejected.get(news.file)
            same = told is not None and (told.error, told.line or 0, told.key or "") == (
                news.message,
                news.line,
                news.key,
            )
            if same and news.file not in self._mended:
                return None
            return PolicyRejected(
                **own,
                replica=self._replica.id,
                file=news.file,
                error=news.message,
                project=news.project,
                line=news.line or None,
                key=news.key or None,
            )
        known = state.loaded.get(news.project)
        if known is not None and known.policy_version == news.policy_version and news.file not in state.rejected:
            return None
        return PolicyLoaded(
            **own,
            project=news.project,
            policy_version=news.policy_version,
            text=news.text,
            replica=self._replica.id,
            file=news.file,
        )

    def notice_gone(self) -> None:
        """Files that went away while no replica was there to see it. Call it when the live replicas are known."""
        held = {project for peer in self._replica.live() for project in peer.policies}
        for project, loaded in self._replica.state.loaded.items():
            if project not in self.bundle.policies and project not in held:
                self._untold["policy", project] = Removed(project, loaded.policy_version)
                self._news.set()

    def _notice_mended(self) -> None:
        """Files that the log says do not load, and that are right here: what is in force from them is told again."""
        broken = {rejection.file for rejection in self.rejections}
        for file in self._replica.state.rejected.keys() - broken - self._mended:
            self._mended.add(file)
            for project, (loaded, _) in self._files.items():
                if loaded.file == file:
                    self._untold.setdefault(("policy", project), loaded)
                    self._news.set()

    def _finding(self, rejected: Rejection) -> None:
        self._replica.finding(
            "policy_rejected",
            f"policy_rejected/{rejected.file}",
            f"the policy file {rejected.file} does not load; what was in force stays",
            project=rejected.project,
            severity="page",
            suggestion="mend the file: it is read again by itself, and `banksman status` says whether it loads",
            error=str(rejected),
            attempted=rejected.attempted,
        )
