"""An agent on asyncio: tools that run at the same time, each asked for on its own; the event loop never waits.

BANKSMAN_TOKEN_FILE=buyer.credential python examples/async_agent.py
"""

from __future__ import annotations

import asyncio

from banksman.producers import Emitter, NotAllowed, govern

PAGES = ("docs.example/checkout", "docs.example/refunds", "pastebin.example/raw/x7")


@govern(service="http", action="get", resource=lambda page: page)
async def fetch(page: str) -> str:
    """A page. (This one is made up: an example should run without a network.)"""
    await asyncio.sleep(0.05)
    return f"the text of {page}"


async def research() -> list[str]:
    """Ask for all pages at once -> those that may be read."""
    async with Emitter.from_settings() as emitter, emitter.session() as session:
        session.prompt("How do refunds work?")
        found = await asyncio.gather(*(fetch(page) for page in PAGES), return_exceptions=True)
        for page, text in zip(PAGES, found, strict=True):
            if isinstance(text, NotAllowed):
                print(f"not read  {page}: {text}")
            elif isinstance(text, BaseException):
                raise text
            else:
                print(f"read      {page}")
        session.note("answered from what could be read")
        return [text for text in found if isinstance(text, str)]


def main() -> None:
    """One session."""
    asyncio.run(research())


if __name__ == "__main__":
    main()
