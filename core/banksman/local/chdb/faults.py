"""Errors as a ClickHouse server words them: `Code: N. DB::Exception: … (NAME) (version …)`, with an HTTP status."""

from __future__ import annotations

import re

STATUS = {
    **dict.fromkeys([6, 26, 27, 36, 38, 41, 42, 43, 53, 62, 70, 72, 82, 115, 117, 386], 400),
    **dict.fromkeys([192, 193, 194, 497, 516], 403),
    **dict.fromkeys([46, 47, 60, 81, 372], 404),
    **dict.fromkeys([159, 160], 408),
    **dict.fromkeys([158, 307, 396], 413),
    **dict.fromkeys([373], 423),
    **dict.fromkeys([48], 501),
    **dict.fromkeys([202, 439], 503),
}
"""ClickHouse's error code -> HTTP status; 500 for the rest."""

_CODE = re.compile(r"Code: (\d+)\. ")
_NESTED = re.compile(r"Code: \d+\. DB::Exception: (Code: \d+\. DB::Exception: .*)\. \([A-Z_0-9]+\)\s*\Z", re.DOTALL)


class Fault(Exception):
    """An error to be told to the client. `text` begins after "DB::Exception: "."""

    def __init__(self, code: int, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.status = status or STATUS.get(code, 500)
        self.text = f"Code: {code}. DB::Exception: {text}"

    def message(self, version: str) -> str:
        """The whole line."""
        return self.text if "(version " in self.text else f"{self.text.rstrip()} (version {version} (official build))"


def from_engine(error: Exception) -> Fault:
    """What chDB raised -> what a server would say. chDB nests the text in a second frame and adds words before it."""
    text = str(error)
    text = text[text.find("Code: ") :] if "Code: " in text else text
    nested = _NESTED.match(text)
    if nested:
        text = nested[1]
    found = _CODE.match(text)
    if not found:
        return Fault(1002, f"{type(error).__name__}: {text}. (UNKNOWN_EXCEPTION)")
    return Fault(int(found[1]), text.partition("DB::Exception: ")[2] or text)
