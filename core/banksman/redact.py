"""Secrets and personal data out of events, before they leave the agent and again at the enforcer's entrance.

What is found becomes a mark, `[github-token:ab12cd34]`: the kind and eight hex digits of an HMAC under the agent's event key,
so that equal values can be seen to be equal and nobody can guess the value from the mark. One RE2 union (linear time, one
pass) says whether any rule can match at all; only then the rules run. Every rule is RE2 too: no text can make one slow.

Rules after gitleaks (MIT) and the checksums of ISO/IEC 7812 (Luhn) and ISO 13616 (IBAN).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import re2

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("banksman")

MAX_TEXT = 64 * 1024
"""Longer texts are cut before they are searched; the emitter's own cut of whole events comes later."""

MOST_PASSES = 4

_CUT = re.compile(r"…\[cut: \d+ characters\]\Z").search
"""Of a text that an entrance nearer to the agent cut: its marks may have made it longer again, it is left as it is."""

MOST_FINDS = 1000
"""Beyond so many finds in one value, a text that holds another is dropped whole: a few hundred KiB of addresses must not
keep a process busy for seconds."""

PAYLOAD = frozenset({"args", "result", "error", "text", "asked", "comment", "evidence", "title"})
"""Fields of an event that an agent, or somebody who wrote to it, filled with words. Fields that are not in the models are
redacted too; those that policy and people go by (names, operation, hashes, ids) never are."""

_KEPT = frozenset(
    [
        "v",
        "id",
        "time",
        "kind",
        "source",
        "seq",
        "call",
        "parent",
        "project",
        "agent",
        "session",
        "service",
        "action",
        "branch",
        "args_hash",
        "batch",
        "status",
        "result_hash",
        "outcome_hash",
        "result_size",
        "duration_ms",
        "model",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cost_usd",
        "decision",
        "tier",
        "rule",
        "policy",
        "policy_version",
        "reason",
        "approval",
        "shadow",
        "latency_us",
        "owner",
        "expires_at",
        "approver",
        "redactions",
    ]
)


class Rule(NamedTuple):
    """`kind` goes into the mark; `group` of the pattern is what is replaced; `check` has the last word."""

    kind: str
    pattern: Any
    group: int = 0
    check: Callable[[str], bool] | None = None


def _rule(kind: str, pattern: str, group: int = 0, check: Callable[[str], bool] | None = None) -> Rule:
    options = re2.Options()
    options.log_errors = False
    options.never_nl = False
    return Rule(kind, re2.compile(pattern, options), group, check)


def luhn(text: str) -> bool:
    """Whether 13 to 19 digits have the check digit of a payment card."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = (d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits)))
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether the check digits of an international bank account number fit."""
    bare = text.replace(" ", "")
    return 15 <= len(bare) <= 34 and int("".join(str(int(c, 36)) for c in bare[4:] + bare[:4])) % 97 == 1


SECRETS: tuple[Rule, ...] = (
    _rule(
        "private-key",
        # header, then what keys are made of: nothing after the header can fail, so a key that was cut is caught too
        r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[A-Za-z0-9+/=\s:,.\\-]*",
    ),
    _rule("aws-access-key", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    _rule("github-token", r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}"),
    _rule("slack-token", r"\bxox[abposre]-[A-Za-z0-9-]{10,}|\bxapp-[0-9]-[A-Za-z0-9-]{10,}"),
    _rule("anthropic-key", r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
    _rule("openai-key", r"\bsk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}"),
    _rule("google-api-key", r"\bAIza[A-Za-z0-9_-]{35}"),
    _rule("stripe-key", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{10,99}"),
    _rule("gitlab-pat", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    _rule("pypi-token", r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}"),
    _rule("npm-token", r"\bnpm_[A-Za-z0-9]{36}\b"),
    _rule("banksman-token", r"\bbm[ao]_[0-9a-f]{16}_[A-Za-z0-9_-]{40,}(?:\.[A-Za-z0-9_-]{20,})?"),
    _rule("jwt", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}"),
    _rule("url-password", r"://[^\s:/@]{0,64}:([^\s@/]{3,200})@", 1),
    _rule("bearer", r"(?i)\b(?:bearer|basic)\s+([A-Za-z0-9._~+/=-]{16,})", 1),
    _rule(
        "assigned-secret",
        # backslashes: of JSON inside JSON
        r"(?i)(?:passwd|password|secret|api[_-]?key|access[_-]?token|auth[_-]?token)[\w.-]{0,20}\\{0,4}[\"']?\s{0,3}[:=]\s{0,3}"
        r"\\{0,4}[\"']?([^\s\"',;&\[\]]{6,200})",
        1,
    ),
    _rule(
        "flag-secret",
        r"(?i)(?:^|\s)--?(?:[a-z]{1,20}-)?(?:password|passwd|secret|api-?key|token)\s{1,3}[\"']?([^\s\"'\[\]-][^\s\"'\[\]]{5,200})",
        1,
    ),
)
PERSONAL: tuple[Rule, ...] = (
    _rule(
        "email",
        r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}\b",
        check=lambda found: not found.startswith("git@"),
    ),
    _rule("iban", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", check=iban),
    _rule("card", r"(?:^|[^\d.])(\d(?:[ -]?\d){12,18})(?:$|[^\d.]|\.(?:$|\D))", 1, luhn),
    _rule(
        "ssn", r"\b(\d{3}-\d{2}-\d{4})\b", 1, lambda s: s[:3] not in ("000", "666") and s[0] != "9" and "-00-" not in s
    ),
)


def _gate(rules: tuple[Rule, ...]) -> Any:
    """One pattern that matches wherever any of the rules does. Of bytes: where in a text they are is not asked."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 64 << 20
    options.never_capture = True
    return re2.compile("|".join(f"(?:{rule.pattern.pattern})" for rule in rules).encode(), options)


_GATE = _gate(SECRETS + PERSONAL)
_SECRET_GATE = _gate(SECRETS)

_SENSITIVE_KEY = re.compile(
    r"(?:.*[_.-]|.*[a-z0-9](?=(?-i:[A-Z])))?(?:password|passwd|passphrase|pwd|secret|api[_-]?key|authorization|cookie|set-cookie|private[_-]?key|"
    r"(?:access|auth|bearer|bot|refresh|id|session)[_-]?token)|token",
    re.IGNORECASE,
).fullmatch


@lru_cache(maxsize=4096)
def _sensitive_key(name: str) -> bool:
    return len(name) <= 64 and bool(_SENSITIVE_KEY(name))


def _names_a_secret(pair: dict[str, Any]) -> bool:
    """Whether this is `{"name": "DB_PASSWORD", "value": …}`, as environments and headers are often written."""
    name = pair.get("name", pair.get("key"))
    return type(name) is str and _sensitive_key(name)


def _certainly_clean(event: dict[str, Any]) -> bool:
    """Whether no rule can match anywhere in the event: one search over all its texts instead of one for each.

    False only means that it has to be looked at closely. Between two texts stands a line break, which every rule takes for
    the end of a text, so nothing that a rule finds in one text is hidden here.
    """
    texts: list[str] = []
    for name, content in event.items():
        if name not in _KEPT and not _collect(content, texts):
            return False
    try:
        return not _GATE.search("\n".join(texts).encode())
    except UnicodeError:  # lone surrogates
        return False


def _collect(value: Any, texts: list[str]) -> bool:
    """Add every text of a value that rules would look at; False when a key alone says that something is secret, or a text
    is one that will be cut.
    """
    if type(value) is str:
        if len(value) > 5:
            texts.append(value)
        return len(value) <= MAX_TEXT
    if type(value) is dict:
        if "value" in value and _names_a_secret(value):
            return False
        for key, item in value.items():
            if _sensitive_key(key):
                return False
            if len(key) > 5:
                texts.append(key)
            if not _collect(item, texts):
                return False
        return True
    if type(value) is list:
        return all(_collect(item, texts) for item in value)
    return value is None or type(value) in {bool, int, float}


class Redactor:
    """Redacts under one key. Never raises and never lets through what it could not read: that is dropped and said so."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def value(self, value: Any) -> tuple[Any, list[str]]:
        """A JSON value -> (the value without secrets, a list of `pointer kind`, e.g. `/headers/authorization bearer`)."""
        found: list[str] = []
        try:
            return self._walk(value, "", found, _GATE, SECRETS + PERSONAL), found
        except Exception as error:  # noqa: BLE001 - whatever it is, the payload must not leave unread
            logger.error("redaction failed (%s); the payload was dropped", type(error).__name__)  # noqa: TRY400
            said = "redaction failed"
            return (f"[dropped: {said}]" if isinstance(value, str) else {"dropped": said}), [" dropped"]

    def event(self, event: dict[str, Any]) -> dict[str, Any]:
        """A copy of the event, its payload fields redacted; `redactions` lists what was found, when something was."""
        try:
            return dict(event) if _certainly_clean(event) else self._event(event)
        except Exception as error:  # noqa: BLE001 - see `value`
            logger.error("redaction failed (%s); the payload was dropped", type(error).__name__)  # noqa: TRY400
            return {name: content for name, content in event.items() if name in _KEPT} | {"redactions": ["/ dropped"]}

    def _event(self, event: dict[str, Any]) -> dict[str, Any]:
        found: list[str] = []
        made = dict(event)
        for name, content in event.items():
            if name in _KEPT or content is None or isinstance(content, (bool, int, float)):
                continue
            if name == "resource":
                made[name] = self.text(content, found) if isinstance(content, str) else content
                continue
            made[name], inner = self.value(content)
            found.extend(f"/{name}{where}" if where.startswith("/") else f"/{name} {where.strip()}" for where in inner)
        if found:
            before = event.get("redactions")  # what an entrance nearer to the agent found
            told = [where for where in before if isinstance(where, str)] if isinstance(before, list) else []
            made["redactions"] = sorted({*told, *found})
        return made

    def text(self, text: str, found: list[str], path: str = "/resource") -> str:
        """A field that people go by (a resource, a subject): secrets are taken out, personal data stay."""
        try:
            return self._text(text, path, found, _SECRET_GATE, SECRETS)
        except Exception as error:  # noqa: BLE001 - see `value`
            logger.error("redaction failed (%s); the field was dropped", type(error).__name__)  # noqa: TRY400
            found.append(f"{path} dropped")
            return "[dropped]"

    def _walk(self, value: Any, path: str, found: list[str], gate: Any, rules: tuple[Rule, ...]) -> Any:
        if isinstance(value, str):
            return self._text(value, path, found, gate, rules) if len(value) > 5 else value
        if isinstance(value, dict):
            made: dict[str, Any] = {}
            hidden = "value" in value and _names_a_secret(value)
            for key, item in value.items():
                name = self._text(key, path, found, gate, rules) if len(key) > 5 else key
                here = f"{path}/{name}"
                secret = (hidden and key == "value") or (len(name) <= 64 and _SENSITIVE_KEY(name))
                if secret and not isinstance(item, bool) and item not in ("", None):
                    made[name] = self._hidden(item, here, found)
                else:
                    made[name] = self._walk(item, here, found, gate, rules)
            return made
        if isinstance(value, list):
            return [self._walk(item, f"{path}/{n}", found, gate, rules) for n, item in enumerate(value)]
        return value

    def _hidden(self, item: Any, path: str, found: list[str]) -> Any:
        if isinstance(item, str) and _is_mark(item):
            return item
        found.append(f"{path} field")
        return self._mark("field", item if isinstance(item, str) else repr(item))

    def _text(self, text: str, path: str, found: list[str], gate: Any, rules: tuple[Rule, ...]) -> str:
        if len(text) > MAX_TEXT and not (_CUT(text, max(0, len(text) - 40)) and len(text) <= 2 * MAX_TEXT):
            found.append(f"{path} cut")
            text = f"{text[:MAX_TEXT]}…[cut: {len(text)} characters]"
        # RE2 works on UTF-8; a lone surrogate (which has none) is no text that could be recorded either
        if not gate.search(text.encode()):
            return text
        if len(found) >= MOST_FINDS:
            found.append(f"{path} dropped")
            return "[dropped: more secrets than are looked for]"
        # Marks are left alone: what stands in one is an HMAC, and a second entrance must find nothing new. They are every
        # second piece; the others are searched together, a line break between them, and one by one only for a rule that
        # finds something.
        pieces = _MARK.split(text)
        for _ in range(MOST_PASSES):
            before = text
            for rule in rules:
                if rule.pattern.search("\n".join(pieces[::2])):
                    pieces[::2] = [self._apply(rule, piece, path, found) for piece in pieces[::2]]
                    text = "".join(pieces)
                    pieces = _MARK.split(text)
            # A mark can uncover what stood too close to it: look again until nothing is found.
            if text == before or not gate.search("\n".join(pieces[::2]).encode()):
                break
        return text

    def _apply(self, rule: Rule, text: str, path: str, found: list[str]) -> str:
        parts: list[str] = []
        at = 0
        for match in rule.pattern.finditer(text):
            start, end = match.span(rule.group)
            hit = text[start:end]
            if start < at or (rule.check is not None and not rule.check(hit)):
                continue
            parts += [text[at:start], self._mark(rule.kind, hit)]
            at = end
            found.append(f"{path} {rule.kind}")
        return "".join([*parts, text[at:]]) if parts else text

    def _mark(self, kind: str, value: str) -> str:
        digest = hmac.new(self._key, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
        return f"[{kind}:{digest[:8]}]"


_MARK = re.compile(rf"(\[(?:{'|'.join(rule.kind for rule in (*SECRETS, *PERSONAL))}|field):[0-9a-f]{{8}}\])")
_is_mark = _MARK.fullmatch
