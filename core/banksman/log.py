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
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # a broker that is away is said once, by us
    return logging.getLogger("banksman")
