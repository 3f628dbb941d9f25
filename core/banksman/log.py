"""One line a message on stderr: time, level, service, text. No token or secret may ever be passed in."""

from __future__ import annotations

import logging
import sys
import time


def configure(service: str, level: int = logging.INFO) -> logging.Logger:
    """Set up logging for a process of ours -> its logger."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)-7s {service} %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    hush_kafka(logging.ERROR)
    return logging.getLogger("banksman")


def hush_kafka(level: int = logging.CRITICAL) -> None:
    """Keep the Kafka client's own messages below `level` quiet: that a broker is away is said once, by us."""
    logging.getLogger("aiokafka").setLevel(level)
