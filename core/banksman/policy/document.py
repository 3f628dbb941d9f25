"""YAML as this format reads it: a small, safe subset with a line for everything.

Read from the parser's events, never through a constructor: no tag makes an object, no alias can grow, no nesting can
overflow a stack. What YAML 1.1 would quietly turn into something else (`on`, `1.10`, `2026-01-01`, `0o17`, `12:30`)
is kept as text when it is quoted and refused with that advice when it is not. JSON is read as well, being YAML.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from banksman.errors import InvalidPolicy

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 16

Path = tuple[str | int, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where PyYAML was built with it: 5 times faster
_NULL = re.compile(r"~|null|Null|NULL|").fullmatch
_BOOL = re.compile(r"(?i)yes|no|on|off|true|false").fullmatch
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})").fullmatch
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,30}").fullmatch
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?(?:[Tt\s].*)?").fullmatch
_NUMBER_LIKE = re.compile(
    r"(?i)[-+]?[0-9][0-9_]*(?:[.:e][-+0-9_:.e]*)?|[-+]?0[xob][0-9a-f_]+|[-+]?\.(?:inf|nan|[0-9]+)"
).fullmatch
_STRING = "tag:yaml.org,2002:str"


def read(raw: bytes, file: str) -> tuple[Any, dict[Path, int]]:
    """The document and the line (from 1) of each value in it, by its path. InvalidPolicy: what cannot be read."""
    if len(raw) > MAX_BYTES:
        raise InvalidPolicy(f"the file is larger than {MAX_BYTES >> 20} MiB; split the project", file=file)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidPolicy("the file is not UTF-8", file=file, line=line) from None
    reader = _Reader(file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        about = " ".join(part for part in (error.context, error.problem) if part)
        if mark and "".join(text.splitlines()[mark.line : mark.line + 1])[mark.column : mark.column + 1] == "\t":
            about = "a tab; it is indented by spaces"
        raise InvalidPolicy(f"not YAML: {about}", file=file, line=mark.line + 1 if mark else 0) from None
    except yaml.YAMLError as error:
        at = getattr(error, "position", None)
        line = text.count("\n", 0, at) + 1 if isinstance(at, int) else 0
        raise InvalidPolicy(f"not YAML: {getattr(error, 'reason', error)}", file=file, line=line) from None
    if not reader.seen:
        raise InvalidPolicy("the file is empty", file=file, line=1)
    return reader.root, reader.lines


def spell(path: Path) -> str:
    """A path as people write it: `agents.claude-invoice-01.allow[0].branches[1]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


class _Reader:
    """Builds values from events; a stack of what is open, so that depth costs memory and not the call stack."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Any = None
        self.seen = False
        self.lines: dict[Path, int] = {}
        self._open: list[tuple[Path, dict[str, Any] | list[Any]]] = []
        self._key: str | None = None

    def take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        match event:
            case yaml.ScalarEvent():
                if self._open and isinstance(self._open[-1][1], dict) and self._key is None:
                    self._take_key(event, line)
                else:
                    self._check_plain(event, line)
                    self._put(self._scalar(event, line), line)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._check_plain(event, line)
                if self._open and isinstance(self._open[-1][1], dict) and self._key is None:
                    raise self._wrong("a key must be text", line)
                if len(self._open) >= MAX_DEPTH:
                    raise self._wrong(f"nested deeper than {MAX_DEPTH} levels", line)
                value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
                self._open.append((self._put(value, line), value))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()
            case yaml.AliasEvent():
                raise self._wrong(
                    f"*{event.anchor}: anchors and aliases are not part of the format; write it out", line
                )
            case yaml.DocumentStartEvent() if self.seen:
                raise self._wrong("a second document begins here; one file holds one policy", line)
            case yaml.DocumentStartEvent():
                self.seen = True
            case _:
                pass

    def _wrong(self, message: str, line: int, *steps: str | int) -> InvalidPolicy:
        path = (self._open[-1][0] if self._open else ()) + steps
        return InvalidPolicy(message, file=self.file, line=line, key=spell(path))

    def _check_plain(self, event: Any, line: int) -> None:
        if event.anchor is not None:
            raise self._wrong(f"&{event.anchor}: anchors and aliases are not part of the format; write it out", line)
        if event.tag is not None and not (isinstance(event, yaml.ScalarEvent) and event.tag == _STRING):
            raise self._wrong(f"the tag {event.tag} is not part of the format", line)

    def _take_key(self, event: Any, line: int) -> None:
        self._check_plain(event, line)
        key, here = event.value, self._open[-1]
        if key == "<<" and not event.style:
            raise self._wrong("<<: merge keys are not part of the format; write it out", line)
        if not event.style and (_BOOL(key) or _NULL(key)):
            raise self._wrong(f"the key {key or 'that is empty'} means something else in YAML: put it in quotes", line)
        if key in here[1]:
            first = self.lines[*here[0], key]
            raise self._wrong(f"the key is there twice (first on line {first})", line, key)
        self._key = key
        self.lines[*here[0], key] = line

    def _put(self, value: Any, line: int) -> Path:
        if not self._open:
            self.root, self.lines[()] = value, line
            return ()
        path, container = self._open[-1]
        if isinstance(container, list):
            where: Path = (*path, len(container))
            container.append(value)
            self.lines[where] = line
            return where
        key, self._key = self._key, None
        assert key is not None  # a value follows its key
        container[key] = value
        return (*path, key)

    def _scalar(self, event: Any, line: int) -> Any:
        text: str = event.value
        if event.style or event.tag == _STRING:
            return text
        if _INT(text):
            return int(text)
        if _FLOAT(text):
            return float(text)
        if _NULL(text):
            if not self._open:
                return None
            # `resources:` with nothing after it must not come to mean "any".
            wrong = (
                "has no value: leave the key out, or write {} or [] (a # begins a comment: put text with one in quotes)"
            )
            step = self._step()
            # An empty value is marked where the next thing begins; its key's line is where one looks.
            raise self._wrong(wrong, self.lines.get((*self._open[-1][0], *step), line), *step)
        if text in {"true", "false"}:
            return text == "true"
        if _BOOL(text):
            raise self._wrong(f"{text} is read as true or false by YAML: put it in quotes", line, *self._step())
        if _DATE(text):
            raise self._wrong(f"{text} is read as a date by YAML: put it in quotes", line, *self._step())
        if _NUMBER_LIKE(text):
            raise self._wrong(
                f"{text} is read as a number by some YAML readers: put it in quotes, or write it plainly (500000, 0.8)",
                line, *self._step(),
            )  # fmt: skip
        return text

    def _step(self) -> tuple[str | int, ...]:
        if self._key is not None:
            return (self._key,)
        return (len(self._open[-1][1]),) if self._open else ()
