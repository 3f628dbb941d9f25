"""docs/reference/settings.md from the descriptions in core/banksman/settings.py."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args, get_type_hints

import msgspec

from banksman import settings

INTRO = """# Settings

Every setting is an environment variable, or a line of `banksman.yaml` (in the working folder, or where `BANKSMAN_CONFIG`
says) with the same name in lower case and without `BANKSMAN_`. The environment comes first, then the file, then the default
below. A value that cannot be used stops the process at its start, with the name of the variable or of the line.

Agents read `BANKSMAN_URL` and `BANKSMAN_TOKEN`. Operators' commands read `BANKSMAN_OPERATOR_TOKEN` or `_FILE`, else
`.banksman/admin.token`; emitters never look there. Passwords are better in files (`_FILE`, mode 0600).

This page is made from `core/banksman/settings.py` (`make docs`).
"""


def settings_page() -> str:
    """The whole page: a table a concern."""
    parts = [INTRO]
    for concern in settings.CONCERNS:
        hints = get_type_hints(concern, include_extras=True)
        parts += [f"## {concern.__name__}\n", f"{inspect.getdoc(concern)}\n"]
        parts += ["| variable | default | what |", "|---|---|---|"]
        for field in msgspec.structs.fields(concern):
            meta = next(m for m in get_args(hints[field.name])[1:] if isinstance(m, msgspec.Meta))
            text = str(meta.description)
            choices = _choices(hints[field.name])
            if choices:
                text += f" One of {choices}."
            if meta.examples:
                text += f" Example: `{meta.examples[0]}`."
            parts.append(f"| `BANKSMAN_{field.name.upper()}` | {_default(field.default)} | {text} |")
        parts.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def _choices(hint: Any) -> str:
    schema = msgspec.json.schema(hint)
    return ", ".join(f"`{value}`" for value in schema.get("enum", ()))


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ("", None) else ""
