"""`make docs`: write the reference pages that are made from the code; `--check`: exit 1 when one is not up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from cli_pages import cli_page
from event_pages import events_page, topics_page
from http_pages import enforcer_page
from policy_pages import policy_page
from settings_pages import settings_page

REFERENCE = Path(__file__).parents[1] / "reference"
PAGES = {
    "cli.md": cli_page,
    "events.md": events_page,
    "topics.md": topics_page,
    "settings.md": settings_page,
    "policy.md": policy_page,
    "http-enforcer.md": enforcer_page,
}


def main() -> int:
    stale = [
        name
        for name, make in PAGES.items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != make()
    ]
    if "--check" in sys.argv:
        for name in stale:
            print(f"docs/reference/{name} is not what the code says: `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (REFERENCE / name).write_text(PAGES[name]())
        print(f"docs/reference/{name}")
    return 0


sys.exit(main())
