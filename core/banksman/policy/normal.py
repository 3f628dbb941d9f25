"""The one spelling of an operation: what is folded, and what is refused because it has more than one.

A pattern is only worth something if the thing it names can be written in one way. So nothing is repaired here (a
repaired `a/../b` is the start of every traversal); what is not in its one spelling is not matched but denied. The
single exception is what the service itself folds: the case of an AWS action, an HTTP method, an SQL command.

What is refused, in all four fields: control and invisible characters (Unicode Cc, Cf, Cs, Zl, Zp, and what fonts do not
draw), text that is not NFC, `%` escapes, backslashes, white space at an end, the empty string. In resources and branches,
read as paths: empty, `.` and `..` segments (one leading `/` is an absolute path). In an ARN: fewer than six parts, an empty
sixth part, and in the sixth part, whose keys are opaque, only `.` and `..` segments. In the host of a URL (`https://…`) or of
a resource of the service `http`: upper case, empty labels, a trailing dot, user names, a query, wildcards in what is asked
(a pattern may have them), IP addresses and ports that are not written as everybody writes them. In git's repositories:
addresses (`https://…`, `git@…:…`) and what ends in `.git`. In branches: what git takes for a way to name another one
(`refs/heads/main`, `HEAD`, `HEAD:main`, `+main`, `main~0`).
"""

from __future__ import annotations

import ipaddress
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

_FOLDS: dict[str, Callable[[str], str]] = {"aws": str.lower, "http": str.upper, "postgres": str.lower}
FOLDS_ACTIONS = frozenset(_FOLDS)
"""Services whose actions mean the same in any case."""

HOST_SERVICES = frozenset({"http"})
"""Services whose resources begin with a host, also without a scheme."""

_ESCAPE = re.compile(r"%(?:[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})").search
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_NOT_DRAWN = re.compile(  # letters and marks that Unicode calls Default_Ignorable_Code_Point
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
).search
_DOTS = re.compile(r"(?:^|/)\.\.?(?:/|$)").search
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://").match
_ALMOST_URL = re.compile(r"(?i)(?:https?|wss?|ftp|file):(?!//)").match
_NAME = r"(?!\.)(?!.*(?:\.\.|\.(?::|$)))[a-z0-9_.{wild}-]+"
_HOST = re.compile(rf"(?:{_NAME.format(wild='')}|\[[0-9a-f:.]+\])(?::[1-9][0-9]{{0,4}})?").fullmatch
_HOST_PATTERN = re.compile(
    rf"{_NAME.format(wild='*?')}(?::[1-9*?][0-9*?]{{0,4}})?|\[[0-9a-f:.]+\](?::[1-9][0-9]{{0,4}})?"
).fullmatch
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+").fullmatch
_REVISION = re.compile(r"[ ~^:]|@\{|^[-+/]|^(?:@|HEAD)$|^(?:refs|heads)/").search
_DEFAULT_PORT = {"https": ":443", "http": ":80"}

# What is certainly in its one spelling, in one pass over plain ASCII; whatever these do not match is looked at slowly.
# Possessive (`*+`): they never go back, so a long value costs its length and no more.
_SEGMENT = r"[A-Za-z0-9_@+=,~#:$(][A-Za-z0-9_.@+=,~#:$() -]*+"
PLAIN_PATH = re.compile(rf"/?(?!(?i:arn|https?|wss?|ftp|file):){_SEGMENT}(?:/{_SEGMENT})*+(?<! )").fullmatch
_NAME_PART = r"[A-Za-z0-9_@+=,~#$(][A-Za-z0-9_.@+=,~#$() -]*+"
PLAIN_REPOSITORY = re.compile(rf"(?!.*\.git(?:/|\Z)){_NAME_PART}(?:/{_NAME_PART})*+(?<! )").fullmatch
_PART = r"[A-Za-z0-9_=,#$(][A-Za-z0-9_.=,#$()-]*+"
PLAIN_BRANCH = re.compile(rf"(?!refs/|heads/|HEAD\Z){_PART}(?:/{_PART})*+").fullmatch
PLAIN_ARN = re.compile(
    r"arn:[a-z0-9-]*+:[a-z0-9-]*+:[a-z0-9-]*+:[a-z0-9]*+:[A-Za-z0-9_@+=:$-]"
    r"[A-Za-z0-9_.@+=,~:$ -]*+(?:/++[A-Za-z0-9_@+=:$-][A-Za-z0-9_.@+=,~:$ -]*+)*+(?<! )"
).fullmatch
_never_plain = re.compile(r"(?!)").fullmatch


def plain_resource(service: str) -> Callable[[str], object]:
    """The fast check for resources of this service: truthy means canonical, falsy means ask `bad_resource`."""
    if service in HOST_SERVICES:
        return _never_plain
    return {"aws": PLAIN_ARN, "git": PLAIN_REPOSITORY}.get(service, PLAIN_PATH)


def fold_action(service: str, action: str) -> str:
    """The action in the spelling that is matched. Only ASCII is folded: no other letter becomes an ASCII one."""
    fold = _FOLDS.get(service)
    return fold(action) if fold is not None and action.isascii() else action


def bad_text(text: str) -> str | None:
    """What is wrong with any text of an operation, in words that follow its name; None when nothing is."""
    if not text:
        return "is empty"
    if not (text.isascii() and text.isprintable()):
        for char in text:
            if unicodedata.category(char) in _INVISIBLE:
                return f"holds U+{ord(char):04X}, a control or invisible character"
        if found := _NOT_DRAWN(text):
            return f"holds U+{ord(found[0]):04X}, a control or invisible character"
        if not unicodedata.is_normalized("NFC", text):
            return "is not in Unicode's normal form C"
    if "\\" in text:
        return "holds a backslash"
    if "%" in text and _ESCAPE(text):
        return "holds a % escape"
    if text[0].isspace() or text[-1].isspace():
        return "begins or ends with white space"
    return None


def bad_resource(service: str, resource: str, *, pattern: bool = False) -> str | None:
    """What is wrong with a resource, or None. `pattern`: with one that stands in a policy, so `*` and `?` are wildcards."""
    wrong = bad_text(resource)
    if wrong:
        return wrong
    if service == "git" and (wrong := _bad_repository(resource)):
        return wrong
    if resource.startswith("arn:"):
        return _bad_arn(resource)
    url = _URL(resource)
    if url:
        return _bad_url(url[1], resource[url.end() :], pattern=pattern)
    if _ALMOST_URL(resource):
        return "is a URL without its //"
    if service in HOST_SERVICES and not (pattern and resource in {"*", "**"}):
        return _bad_url("", resource, pattern=pattern)
    return _bad_path(resource)


def _bad_repository(repository: str) -> str | None:
    """Every host takes `acme/billing.git`, and an address, for the same repository."""
    if repository.endswith(".git") or ".git/" in repository:
        return "ends in .git: a repository is named without it"
    if ":" in repository:
        return (
            "is an address: a repository is named as owner/repository, with its host in front where there are several"
        )
    return None


def bad_branch(branch: str, *, pattern: bool = False) -> str | None:
    """What is wrong with a branch (`pattern`: with a pattern of branches), or None."""
    wrong = bad_text(branch) or _bad_path(branch)
    if not wrong and _REVISION(branch):
        wrong = "is another way than its plain name to say which branch"
    if not wrong and not pattern and any(char in branch for char in "*?["):
        wrong = "holds a wildcard, and names more than one branch"
    return wrong


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


def _bad_url(scheme: str, rest: str, *, pattern: bool) -> str | None:
    if scheme != scheme.lower():
        return "has a scheme in upper case"
    host, slash, _ = rest.partition("/")
    if host or scheme not in {"", "file"}:
        port = _DEFAULT_PORT.get(scheme)
        if not (pattern and host == "**") and not (_HOST_PATTERN if pattern else _HOST)(host):
            return (
                "has a host that is not in lower case and without empty labels, user names, a query or a trailing dot, "
                "or a port that is no plain number"
            )
        if port and host.endswith(port):
            return f"names the port that {scheme} has anyway"
        if _bad_address(host):
            return "has an IP address that is not in its usual form"
    return _bad_path(rest) if slash else None


def _bad_address(host: str) -> bool:
    """Whether a host, with or without a port, is an IP address in another form than its usual one.

    `2852039166`, `0xa9fea9fe`, `169.254.43518` and `[::ffff:a9fe:a9fe]` all lead to 169.254.169.254. As in a browser, what
    ends in a number is an IPv4 address.
    """
    if host.startswith("["):
        text = host[1 : host.index("]")]
        try:
            address = ipaddress.IPv6Address(text)
        except ValueError:
            return True
        return address.ipv4_mapped is not None or str(address) != text
    name = host.partition(":")[0]
    if "*" in name or "?" in name or not _NUMBER(name.rpartition(".")[2]):
        return False
    try:
        return str(ipaddress.IPv4Address(name)) != name
    except ValueError:
        return True
