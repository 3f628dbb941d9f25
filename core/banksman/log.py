"""One line a message on stderr: time, level, service, text. No token or secret may ever be passed in."""

from __future__ import annotations

import logging
import sys
import time

QUIET_S = 30.0
"""The Kafka client says the same thing, from the same line of its code, once in this time."""


class Thin(logging.Filter):
    """While no broker answers, the Kafka client has an error for each of its tries: ten a second. The first is let through, and
    from then on one in QUIET_S seconds, with the number of those that were not. What we say ourselves is never held back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is let through."""
        if record.name.partition(".")[0] != "aiokafka":
            return True
        where = record.pathname, record.lineno
        since, held = self._said.get(where, (-QUIET_S, 0))
        if record.created - since < QUIET_S:
            self._said[where] = since, held + 1
            return False
        self._said[where] = record.created, 0
        if held:
            record.msg, record.args = f"{record.getMessage()} (and {held} more like it)", ()
        return True


def configure(service: str, level: int = logging.INFO) -> logging.Logger:
    """Set up logging for a process of ours -> its logger."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)-7s {service} %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(Thin())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    hush_kafka(logging.ERROR)
    return logging.getLogger("banksman")


def hush_kafka(level: int = logging.CRITICAL) -> None:
    """Keep the Kafka client's own messages below `level` quiet: that a broker is away is said once, by us."""
    logging.getLogger("aiokafka").setLevel(level)
