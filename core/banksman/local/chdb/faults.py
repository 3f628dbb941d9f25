"""Errors as a ClickHouse server words them: `Code: N. DB::Exception: … (NAME) (version …)`, with an HTTP status."""

from __future__ import annotations

import re

STATUS = {
    **dict.fromkeys(
        [6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 441, 675, 676],
        400,
    ),
    194: 401,
    **dict.fromkeys([192, 193, 497, 512, 516], 403),
    **dict.fromkeys([46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 372, 511], 404),
    159: 408,
    229: 413,
    373: 423,
    48: 501,
    **dict.fromkeys([76, 202, 209, 439], 503),
    # where a server says 500, and a client would try the same again in vain
    **dict.fromkeys([40, 43, 89, 271, 456, 457], 400),
    307: 413,
    236: 503,
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
    """What chDB raised -> what a server would say. chDB nests the text in more frames and adds words before it."""
    text = str(error)
    text = text[text.find("Code: ") :] if "Code: " in text else text
    text = text.partition(", Stack trace (when copying this message")[0]
    while nested := _NESTED.match(text):
        text = nested[1]
    found = _CODE.match(text)
    if not found:
        return Fault(1002, f"{type(error).__name__}: {text}. (UNKNOWN_EXCEPTION)")
    return Fault(int(found[1]), text.partition("DB::Exception: ")[2] or text)
