"""What an agent uses: `Emitter`, `govern`, `NotAllowed`. Names are imported when they are asked for.

from banksman.producers import Emitter
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from banksman.producers.asking import Decision, NotAllowed
    from banksman.producers.emitter import Emitter, SpoolFull
    from banksman.producers.governed import govern
    from banksman.producers.http_transport import HttpTransport
    from banksman.producers.kafka_transport import KafkaTransport
    from banksman.producers.outbox import Stats
    from banksman.producers.session import Session

_WHERE = {
    "Decision": "asking",
    "Emitter": "emitter",
    "HttpTransport": "http_transport",
    "KafkaTransport": "kafka_transport",
    "NotAllowed": "asking",
    "Session": "session",
    "SpoolFull": "emitter",
    "Stats": "outbox",
    "govern": "governed",
}

__all__ = [
    "Decision",
    "Emitter",
    "HttpTransport",
    "KafkaTransport",
    "NotAllowed",
    "Session",
    "SpoolFull",
    "Stats",
    "govern",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
