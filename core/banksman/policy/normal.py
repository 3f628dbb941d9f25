"""The one spelling of an operation: what is folded, and what is refused because it has more than one.

A pattern is only worth something if the thing it names can be written in one way. So nothing is repaired here (a
repaired `a/../b` is the start of every traversal); what is not in its one spelling is not matched but denied. The
single exception is what the service itself folds: the case of AWS actions.

What is refused, in all four fields: control and invisible characters (Unicode Cc, Cf, Cs, Zl, Zp), text that is not
NFC, `%` escapes, backslashes, the empty string. In resources and branches, read as paths: empty, `.` and `..`
segments (one leading `/` is an absolute path). In an ARN: fewer than six parts, an empty sixth part, and in the sixth
part, whose keys are opaque, only `.` and `..` segments. In the host of a URL (`https://…`) or of a resource of the
service `http`: upper case, empty labels, a trailing dot, user names.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SERVICE = 128
MAX_ACTION = 256
MAX_RESOURCE = 4096
MAX_BRANCH = 1024
"""Characters; beyond, the answer is `too_long`. A pattern may not be longer either."""

FOLDS_ACTIONS = frozenset({"aws"})
"""Services whose actions mean the same in any case."""

HOST_SERVICES = frozenset({"http"})
"""Services whose resources begin with a host, also without a scheme."""

_ESCAPE = re.compile(r"%(?:[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})").search
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_DOTS = re.compile(r"(?:^|/)\.\.?(?:/|$)").search
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://").match
_HOST = re.compile(r"(?!.*(?:\.\.|\.(?::|$)))(?!\.)[a-z0-9_.*?-]+(?::[0-9*?]+)?|\[[0-9a-f:.]+\](?::[0-9]+)?").fullmatch
_DEFAULT_PORT = {"https": ":443", "http": ":80"}

# What is certainly in its one spelling, in one pass over plain ASCII; whatever these do not match is looked at slowly.
# Possessive (`*+`): they never go back, so a long value costs its length and no more.
_SEGMENT = r"[A-Za-z0-9_@+=,~#:$(][A-Za-z0-9_.@+=,~#:$() -]*+"
PLAIN_PATH = re.compile(rf"/?(?!arn:){_SEGMENT}(?:/{_SEGMENT})*+").fullmatch
PLAIN_ARN = re.compile(
    r"arn:[a-z0-9-]*+:[a-z0-9-]*+:[a-z0-9-]*+:[a-z0-9]*+:[A-Za-z0-9_@+=:$-]"
    r"[A-Za-z0-9_.@+=,~:$ -]*+(?:/++[A-Za-z0-9_@+=:$-][A-Za-z0-9_.@+=,~:$ -]*+)*+"
).fullmatch
_never_plain = re.compile(r"(?!)").fullmatch


def plain_resource(service: str) -> Callable[[str], object]:
    """The fast check for resources of this service: truthy means canonical, falsy means ask `bad_resource`."""
    if service in HOST_SERVICES:
        return _never_plain
    return PLAIN_ARN if service == "aws" else PLAIN_PATH


def fold_action(service: str, action: str) -> str:
    """The action in the spelling that is matched. Only ASCII is folded: no other letter becomes an ASCII one."""
    return action.lower() if service in FOLDS_ACTIONS and action.isascii() else action


def bad_text(text: str) -> str | None:
    """What is wrong with any text of an operation, in words that follow its name; None when nothing is."""
    if not text:
        return "is empty"
    if not (text.isascii() and text.isprintable()):
        for char in text:
            if unicodedata.category(char) in _INVISIBLE:
                return f"holds U+{ord(char):04X}, a control or invisible character"
        if not unicodedata.is_normalized("NFC", text):
            return "is not in Unicode's normal form C"
    if "\\" in text:
        return "holds a backslash"
    if "%" in text and _ESCAPE(text):
        return "holds a % escape"
    return None


def bad_resource(service: str, resource: str) -> str | None:
    """What is wrong with a resource (or a pattern of resources), or None."""
    wrong = bad_text(resource)
    if wrong:
        return wrong
    if resource.startswith("arn:"):
        return _bad_arn(resource)
    url = _URL(resource)
    if url:
        return _bad_url(url[1], resource[url.end() :])
    if service in HOST_SERVICES and resource not in {"*", "**"}:
        return _bad_url("", resource)
    return _bad_path(resource)


def bad_branch(branch: str) -> str | None:
    """What is wrong with a branch (or a pattern of branches), or None."""
    return bad_text(branch) or _bad_path(branch)


def _bad_path(path: str) -> str | None:
    if path == "/":
        return None
    segments = path.removeprefix("/")
    if segments.startswith("/") or segments.endswith("/") or "//" in segments:
        return "has an empty segment"
    if _DOTS(segments):
        return "has a . or .. segment"
    return None


def _bad_arn(arn: str) -> str | None:
    parts = arn.split(":", 5)
    if len(parts) < 6 or not parts[5]:
        return "is an ARN without its six parts"
    if _DOTS(parts[5]):
        return "has a . or .. segment"
    return None


def _bad_url(scheme: str, rest: str) -> str | None:
    if scheme != scheme.lower():
        return "has a scheme in upper case"
    host, slash, _ = rest.partition("/")
    if host or scheme not in {"", "file"}:
        port = _DEFAULT_PORT.get(scheme)
        if host != "**" and not _HOST(host):
            return "has a host that is not in lower case and without empty labels, user names or a trailing dot"
        if port and host.endswith(port):
            return f"names the port that {scheme} has anyway"
    return _bad_path(rest) if slash else None
