"""What an agent usually does: which action follows which, and at what its actions aim. Counts, with a bound on each.

    actions   how often each was used
    pairs     how often one followed another (a session begins with START)
    grams     which three in a row there were
    slots     at what an action aims: uses, and the values and classes of values that it was seen with

A slot is an action and the name before the colon of its resource (`recipients:a@x.example`), or its branch. A value's class
is the part that it shares with others of its kind: the domain of an address, the host of a URL, the folder of a path, the
bank's country, "a number". So a new search term costs little, a new payee among few payees much, and less in a known class.

What a bound pushes out is what was used longest ago. A slot goes on counting how many different values it has seen, so one
with more of them than are kept (search terms) finds nothing strange about the next one.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
from msgspec import field

from banksman.policy.catalogue import is_read_only
from banksman.policy.normal import fold_action
from banksman.processors.operation import DIGEST, digest, holds, visible, with_one

if TYPE_CHECKING:
    from banksman.events import ApiRequest, ToolCall

START = bytes(DIGEST)
"""Stands where there is nothing: before the first action, and for the class of a value that has none."""

KAPPA = 4.0
"""How much the pairs of an action must weigh before they count for more than the action's own frequency."""
DIFFERENT_ACTIONS = 25
MOST_SURPRISE = 3.0
NO_HISTORY = 0.5
"""Novelty where an action was never used in this way. Little, as long as it is only this agent that never did: .55 instead of
.46 of the attacks at 5 % false alarms."""
KNOWN_CLASS = 0.7
TARGETS = 6
"""Of one list."""
BRANCH = "a branch"
"""In place of an argument's name, which holds no space."""
CACHED = 256
"""Characters of a service and its action, or of a value, above which nothing is remembered of them."""
CLASSED = 512
"""Characters of a value that its class is read from."""

ACTIONS, PAIRS, GRAMS, SLOTS, VALUES, CLASSES, NAMES = 128, 512, 1024, 96, 64, 32, 192
"""What is kept at most; values and classes: of one slot."""

_ARGUMENT = re.compile(r"(?!arn:)([A-Za-z_][A-Za-z0-9_.-]{0,63}):(?!//)").match
_MAIL = re.compile(r"@([\w.-]+)").search
_IBAN = re.compile(r"[A-Z]{2}\d{6,}").match
_NUMBER = re.compile(r"[\d.:\- ]+").fullmatch


class Target(msgspec.Struct, frozen=True, gc=False):
    """One thing that an action aims at."""

    slot: bytes
    value: bytes
    kind: bytes
    """Of its class; START: it has none."""
    text: str
    kind_text: str = ""


class Act(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An action as it is learnt: `targets` are slot, value and class of each, one after the other."""

    action: bytes
    targets: bytes


class Slot(msgspec.Struct, array_like=True):
    """One way to use an action."""

    uses: int = 0
    distinct: int = 0
    kinds: int = 0
    values: bytes = b""
    classes: bytes = b""


class Habits(msgspec.Struct, array_like=True):
    """Of one agent: a few KB, and never more than 120."""

    sessions: int = 0
    total: int = 0
    actions: dict[bytes, int] = field(default_factory=dict)
    pairs: dict[bytes, int] = field(default_factory=dict)
    after: dict[bytes, int] = field(default_factory=dict)
    """How many pairs begin with an action: the sum of `pairs`."""
    grams: bytes = b""
    slots: dict[bytes, Slot] = field(default_factory=dict)
    names: dict[bytes, str] = field(default_factory=dict)
    """How actions are called, for people."""
    forgot: bool = False
    """It has used more actions, or in more ways, than are kept: "never" means "not lately"."""

    def learn(self, acts: list[Act]) -> None:
        """A session that was as it should be."""
        self.sessions += 1
        first = second = START
        for act in acts:
            _count(self.actions, act.action)
            self.total += 1
            _count(self.pairs, second + act.action)
            _count(self.after, second)
            gram = digest_of_three(first, second, act.action)
            self.grams = with_one(self.grams, gram, GRAMS)
            for place in range(0, len(act.targets), 3 * DIGEST):
                slot, value, kind = (act.targets[place + at : place + at + DIGEST] for at in (0, DIGEST, 2 * DIGEST))
                self._learn_target(slot, value, kind)
            first, second = second, act.action
        self._forget()

    def _learn_target(self, name: bytes, value: bytes, kind: bytes) -> None:
        slot = self.slots[name] = self.slots.pop(name) if name in self.slots else Slot()
        slot.uses += 1
        slot.distinct += not holds(slot.values, value)
        slot.values = with_one(slot.values, value, VALUES)
        if kind != START:
            slot.kinds += not holds(slot.classes, kind)
            slot.classes = with_one(slot.classes, kind, CLASSES)

    def _forget(self) -> None:
        while len(self.pairs) > PAIRS:
            gone = next(iter(self.pairs))
            left = self.after[gone[:DIGEST]] - self.pairs.pop(gone)
            if left:
                self.after[gone[:DIGEST]] = left
            else:
                del self.after[gone[:DIGEST]]
        while len(self.actions) > ACTIONS:
            self.total -= self.actions.pop(next(iter(self.actions)))
            self.forgot = True
        while len(self.slots) > SLOTS:
            del self.slots[next(iter(self.slots))]
            self.forgot = True

    # ── how strange something is ──

    def surprise(self, previous: bytes, action: bytes) -> float:
        """-log P(action | previous), capped: 0 is what always comes next."""
        chance = (self.actions.get(action, 0) + KAPPA / DIFFERENT_ACTIONS) / (self.total + KAPPA)
        chance = (self.pairs.get(previous + action, 0) + KAPPA * chance) / (self.after.get(previous, 0) + KAPPA)
        return min(MOST_SURPRISE, -math.log(chance))

    def novelty(self, targets: list[Target]) -> tuple[float, Target | None]:
        """Of the most novel target, and which it is; 0 and None where all are known."""
        most, which = 0.0, None
        for target in targets:
            novel = self._novelty(target)
            if novel > most:
                most, which = novel, target
        return most, which

    def _novelty(self, target: Target) -> float:
        slot = self.slots.get(target.slot)
        if slot is None:
            return NO_HISTORY
        if holds(slot.values, target.value):
            return 0.0
        novel = -math.log((slot.distinct + 0.5) / (slot.uses + 1))
        if target.kind == START:
            return novel
        if holds(slot.classes, target.kind):
            return novel * KNOWN_CLASS
        return max(novel, -math.log((slot.kinds + 0.5) / (slot.uses + 1)))

    def is_new_kind(self, target: Target) -> bool:
        """Whether nothing of the target's class was aimed at before."""
        slot = self.slots.get(target.slot)
        return target.kind != START and (slot is None or not holds(slot.classes, target.kind))

    def knows_three(self, first: bytes, second: bytes, action: bytes) -> bool:
        """Whether these were done one after the other before."""
        return holds(self.grams, digest_of_three(first, second, action))

    # ── for people ──

    def call(self, action: bytes, name: str) -> None:
        """Remember how an action is called."""
        if action not in self.names:
            self.names[action] = name
            if len(self.names) > NAMES:
                del self.names[next(iter(self.names))]

    def name(self, action: bytes) -> str:
        """What people call it."""
        return "the session's start" if action == START else self.names.get(action, "something long ago")

    def usual_after(self, previous: bytes) -> list[list[object]]:
        """The three most frequent followers of an action, with their shares."""
        every = self.after.get(previous, 0)
        found = [(count, pair[DIGEST:]) for pair, count in self.pairs.items() if pair.startswith(previous)]
        return [[self.name(action), round(count / every, 2)] for count, action in sorted(found, reverse=True)[:3]]


def _count(counts: dict[bytes, int], key: bytes) -> None:
    """One more; what was counted last stands last."""
    counts[key] = counts.pop(key, 0) + 1


def digest_of_three(first: bytes, second: bytes, third: bytes) -> bytes:
    """A 3-gram."""
    return hashlib.blake2b(first + second + third, digest_size=DIGEST).digest()


# ── what an event is in these words ──


class Doing(msgspec.Struct, frozen=True):
    """What is done, without at what."""

    action: bytes
    name: str
    reads: bool


def doing(event: ToolCall | ApiRequest) -> Doing:
    """Of an event."""
    usual = len(event.service) + len(event.action) <= CACHED
    return (_doing if usual else _doing.__wrapped__)(event.service, event.action)


@lru_cache(maxsize=1024)
def _doing(service: str, action: str) -> Doing:
    name = visible(f"{service}:{action}", 60)
    return Doing(digest(service, fold_action(service, action)), name, is_read_only(service, action))


@lru_cache(maxsize=2048)
def _slot(action: bytes, argument: str) -> bytes:
    return digest(action.hex(), argument)


def targets_of(event: ToolCall | ApiRequest, action: bytes) -> list[Target]:
    """At what an operation aims: the elements of its resource, and its branch."""
    found = []
    if event.resource:
        argument = _ARGUMENT(event.resource)
        where = _slot(action, argument[1] if argument else "")
        text = event.resource[argument.end() :] if argument else event.resource
        found = [_aimed(where, value) for value in text.split(",", TARGETS)[:TARGETS]]
    if event.branch:
        found.append(_aimed(_slot(action, BRANCH), event.branch))
    return found


def act_of(action: bytes, targets: list[Target]) -> Act:
    """What is remembered of it."""
    return Act(action, b"".join(target.slot + target.value + target.kind for target in targets))


def _aimed(slot: bytes, value: str) -> Target:
    """Agents do the same to the same things again and again."""
    return (_target if len(value) <= CACHED else _target.__wrapped__)(slot, value)


@lru_cache(maxsize=4096)
def _target(slot: bytes, value: str) -> Target:
    kind = _kind(value)
    shown = visible(value, 60)
    if kind is None:
        return Target(slot, digest(value), START, shown)
    return Target(slot, digest(value), digest("class", kind), shown, visible(kind, 60))


def _kind(value: str) -> str | None:
    """The class of a value, or None: domain, host, country of a bank, folder, number."""
    value = value[:CLASSED]
    if mail := _MAIL(value):
        return "@" + mail[1]
    if "://" in value or "www." in value:
        return "host " + value.rpartition("://")[2].partition("/")[0]
    if _IBAN(value):
        return value[:2] + "#"
    if "/" in value:
        return value.rpartition("/")[0] + "/"
    return "a number" if _NUMBER(value) else None
