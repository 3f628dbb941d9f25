"""No broker answers: the archiver's log says so and stays short, and told to stop it stops."""

from __future__ import annotations

import signal
import time

import pytest
from tests.processors.conftest import Archive
from tests.servers import Broker, freeze

from banksman.bus import CLOSE_S
from banksman.processors.archiver.patience import GRACE_S

AWAY_S = 6.0
"""Long enough for sixty tries of the Kafka client, each of which it calls an error."""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "frozen"])
def test_few_words_and_a_quick_end(archive: Archive, broker: Broker, how: str) -> None:
    process = archive.start()
    archive.publish(archive.action(text="0"))
    archive.until(lambda: archive.count() == 1)
    log = archive.folder / "archiver0.log"
    before = len(log.read_text().splitlines())
    if how == "gone":
        broker.kill()
    else:
        freeze(broker.process.pid)
    try:
        if how == "gone":
            archive.until(lambda: len(log.read_text().splitlines()) > before)
        time.sleep(AWAY_S)  # what is measured: how much is said in this time
        said = log.read_text().splitlines()[before:]
        assert len(said) <= 12, "\n".join(said)
        told = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
        assert time.monotonic() - told < GRACE_S + 2 * CLOSE_S + 2
    finally:
        if how == "gone":
            broker.start()
        else:
            broker.process.send_signal(signal.SIGCONT)
    archive.publish(archive.action(text="1"))
    archive.start()
    archive.until(lambda: archive.count() == 2)
