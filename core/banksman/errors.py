"""Every error that banksman raises on purpose. The tree:

    BanksmanError
    ├── InvalidInput        what was given is wrong: names the field; HTTP 400 or 422, CLI exit 2
    │   ├── InvalidEvent    an event that can never be processed: `dead` topic, never tried again
    │   ├── InvalidPolicy   a policy file that does not load: file, line, key
    │   └── InvalidSetting  an environment variable or a line of banksman.yaml
    ├── Unavailable         somebody is away: try again later; HTTP 503, CLI exit 4
    │   ├── BrokerAway      Kafka did not acknowledge in time
    │   └── StoreAway       ClickHouse did not answer, is full or out of memory
    ├── Refused             the caller may not: HTTP 401 or 403, CLI exit 3
    └── BadDeployment       what the promises rest on is not there (topic settings, Java, a taken port): exit 4

Errors carry values; the sentence is made from them, nobody parses it.
"""

from __future__ import annotations


class BanksmanError(Exception):
    """The root: `except BanksmanError` is what a command line catches to print one clear line."""


class InvalidInput(BanksmanError):
    """What was given is wrong. `field` is the path of the field (`args.amount`, `events[3].kind`), or ""."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.field = field


class InvalidEvent(InvalidInput):
    """Can never be processed, however often it is tried."""


class InvalidPolicy(InvalidInput):
    """A policy file that does not load. `line` counts from 1; 0 where there is none."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, key: str = "") -> None:
        where = ":".join(part for part in (file, str(line) if line else "") if part)
        super().__init__(message, field=key)
        self.file, self.line, self.key = file, line, key
        self.args = (f"{where}: {self.args[0]}" if where else self.args[0],)


class InvalidSetting(InvalidInput):
    """A setting that cannot be used; `field` is its name in the environment."""


class Unavailable(BanksmanError):
    """Somebody is away; the same call may succeed later."""


class BrokerAway(Unavailable):
    """Kafka did not acknowledge in time. The record may still land."""


class StoreAway(Unavailable):
    """ClickHouse did not answer, is full or out of memory. Nothing about the data is wrong."""


class Refused(BanksmanError):
    """The caller is not known (401) or may not do this (403)."""

    def __init__(self, message: str, *, status: int = 403) -> None:
        super().__init__(message)
        self.status = status


class BadDeployment(BanksmanError):
    """Something that the promises rest on is not as it must be; starting would be a lie."""
