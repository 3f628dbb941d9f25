"""An agent that reports through our own emitter until SIGTERM, and writes into the journal what it was promised.

python -m tests.faults.emitting AGENT JOURNAL           settings: BANKSMAN_*, as for any agent
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.e2e.load import Journal

from banksman.producers import Emitter

EVENTS, PAUSE_S, FLUSH_S = 200, 0.02, 90.0


def main() -> int:
    """Sessions, one after the other, each flushed -> 1 when something is left at the end."""
    agent, journal = sys.argv[1], Journal(Path(sys.argv[2]))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    Path(sys.argv[3]).write_text(str(os.getpid()))  # from here on it ends when it is asked to
    emitter, open_ids = Emitter.from_settings(), []
    while not ended.is_set():
        with emitter.session() as session:
            for number in range(EVENTS):
                made = session.model_call("m", input_tokens=number, output_tokens=1)
                journal.write("emitted", id=made, agent=agent, at=time.time())
                open_ids.append(made)
                ended.wait(PAUSE_S)
        if emitter.flush(1.0):
            journal.write("flushed", agent=agent, ids=open_ids)
            open_ids = []
    if not emitter.flush(FLUSH_S):
        return 1
    journal.write("flushed", agent=agent, ids=open_ids)
    return 0 if emitter.close() else 1


if __name__ == "__main__":
    sys.exit(main())
