"""What the tests of the embedded servers share: nodes of their own, and looking at processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.servers import Broker, child_environment

from banksman.local import children, jars, java, kafka

MakeNode = Callable[..., kafka.Node]


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return when `condition` holds; fail when it does not within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.01)  # between two looks at the condition


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def machine_java() -> Path:
    return java.find_java()


@pytest.fixture(scope="session")
def real_jars() -> Path:
    """This user's cache, filled: the first run on a machine fetches it."""
    return jars.fetch(jars.cache_folder())


@pytest.fixture
def make_node(tmp_path: Path, machine_java: Path, real_jars: Path) -> MakeNode:
    """A node in a folder of the test; nothing of it runs yet."""

    def make(**changes: object) -> kafka.Node:
        given: dict[str, object] = {
            "folder": tmp_path / "kafka",
            "java": machine_java,
            "jars": real_jars,
            "port": kafka.free_port(),
            "users": {"service": "for-the-test", "agent": "another"},
            "heap": "256m",
        }
        return kafka.Node(**{**given, **changes})  # type: ignore[arg-type]  # a test's own words

    return make


@pytest.fixture
def run_node() -> Iterator[Callable[[kafka.Node], Broker]]:
    """Prepare and start a node, ready when this returns; whatever still runs at the end of the test is killed."""
    started: list[Broker] = []

    def run(node: kafka.Node) -> Broker:
        node.prepare()
        process = children.spawn(node.argv(), log=node.log, env=child_environment())
        broker = Broker(node, process)
        started.append(broker)
        asyncio.run(asyncio.wait_for(node.ready(), 60))
        return broker

    yield run
    for broker in started:
        broker.kill()
