"""What every test gets: a clean environment, and real servers when it asks for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest_plugins = ["tests.servers"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-write", action="store_true", help="write the golden files again instead of comparing")


def pytest_configure() -> None:
    """Whoever starts the tests in the background of a script has them ignore Ctrl-C, and with them every process they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Two processes collect the tests; their names must not carry what differs, as the time in something packed."""
    return f"{len(val)}_bytes" if isinstance(val, bytes) and len(val) > 12 else None


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("BANKSMAN_")]:
        monkeypatch.delenv(name)


class Golden:
    """Compares with a committed file, or writes it when asked to."""

    def __init__(self, folder: Path, *, write: bool) -> None:
        self._folder, self._write = folder, write

    def __call__(self, name: str, text: str) -> None:
        path = self._folder / name
        if self._write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is not there: `make golden` writes it, review reads it"
        assert text == path.read_text()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(Path(__file__).parent / "golden", write=request.config.getoption("--golden-write"))
