"""An emitter, and what it speaks to: a scripted enforcer, or a real one on a real broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import desk, enforcer, make_enforcer
from tests.producers.fake_enforcer import FakeEnforcer
from tests.servers import child_environment

from banksman.producers import Emitter
from banksman.signing import Credential, Secret, new_credential

__all__ = ["desk", "enforcer", "make_enforcer"]

SECRET = Secret({1: b"s" * 32}, 1)


@pytest.fixture(scope="session")
def credential() -> Credential:
    return new_credential(SECRET, "shop", "buyer")[0]


@pytest.fixture
def fake() -> Iterator[FakeEnforcer]:
    made = FakeEnforcer()
    yield made
    if made._server is not None:
        made.stop()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def make_emitter(fake: FakeEnforcer, credential: Credential, spool: Path) -> Iterator[Callable[..., Emitter]]:
    """Emitters that speak to the scripted enforcer; what is left of them is closed."""
    made: list[Emitter] = []

    def make(**more: Any) -> Emitter:
        made.append(Emitter(credential, **{"url": fake.url, "spool": spool, **more}))
        return made[-1]

    yield make
    for one in made:
        one.close(0)


@pytest.fixture
def emitter(make_emitter: Callable[..., Emitter]) -> Emitter:
    return make_emitter()


class Agent:
    """An agent as a process of its own: a script that speaks through pipes. `say` and `hear` are lines."""

    def __init__(self, script: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=child_environment() | environment,
        )  # fmt: skip

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the agent ended with {self.process.wait(10)}"
        return line.strip()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Close its input, and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(60)


@pytest.fixture
def make_agent(fake: FakeEnforcer, credential: Credential, spool: Path) -> Iterator[Callable[..., Agent]]:
    """Starts agents with the settings of the scripted enforcer; whatever is left of them is killed."""
    made: list[Agent] = []

    def make(script: str, **more: str) -> Agent:
        environment = {"BANKSMAN_URL": fake.url, "BANKSMAN_TOKEN": str(credential), "BANKSMAN_SPOOL": str(spool)}
        made.append(Agent(script, environment | more))
        return made[-1]

    yield make
    for agent in made:
        if agent.process.poll() is None:
            agent.process.send_signal(signal.SIGCONT)
            agent.kill()
        for pipe in (agent.process.stdin, agent.process.stdout):
            assert pipe is not None
            pipe.close()


assert os.name == "posix"
