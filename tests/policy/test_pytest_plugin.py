"""Tests of policies as pytest runs them: in a pytest of its own, in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from banksman.policy import cases, pytest_plugin

pytest_plugins = ["pytester"]

PLUGIN = "banksman.policy.pytest_plugin"
POLICY = """project: billing
agents:
  claude:
    allow:
      - {service: git, actions: [push], resources: [acme/billing], branches: ["feature/*"]}
"""
CASES = """operations:
  feature: {service: git, action: push, resource: acme/billing, branch: feature/x}
  main: {service: git, action: push, resource: acme/billing, branch: main}
tests:
  - name: what claude may do
    expect:
      claude: {feature: allow}
      somebody-else: {}
"""
INI = "[pytest]\nbanksman_policies = policies\n"


class Folder:
    def __init__(self, inner: pytest.Pytester) -> None:
        self._inner, self.path = inner, inner.path
        self.write("pytest.ini", INI)
        self.write("policies/billing.yaml", POLICY)
        self.write("policies/billing_test.yaml", CASES)

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(exist_ok=True, parents=True)
        (self.path / name).write_text(text)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output. Warnings are errors, and what else this project has installed has its own settings."""
        of_others = "-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function"
        done = self._inner.runpytest_inprocess("-p", PLUGIN, "-W", "error", *of_others, *arguments)
        return int(done.ret), done.stdout.str() + done.stderr.str()


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return Folder(pytester)


def test_one_test_for_each_agent_and_operation(folder: Folder) -> None:
    code, said = folder("--collect-only", "-q")
    assert code == 0
    assert said.splitlines()[:4] == [
        "policies/billing_test.yaml::what claude may do::claude::feature",
        "policies/billing_test.yaml::what claude may do::claude::main",
        "policies/billing_test.yaml::what claude may do::somebody-else::feature",
        "policies/billing_test.yaml::what claude may do::somebody-else::main",
    ]
    code, said = folder("-q")
    assert (code, "4 passed" in said) == (0, True), said


def test_by_name(folder: Folder) -> None:
    name = "policies/billing_test.yaml::what claude may do::claude"
    assert "2 passed" in folder(name)[1]
    assert "1 passed" in folder(f"{name}::main")[1]
    assert "2 passed" in folder("-k", "somebody")[1]


def test_a_failure_is_told_as_the_command_tells_it(folder: Folder) -> None:
    folder.write("policies/billing_test.yaml", CASES.replace("{feature: allow}", "{feature: allow, main: approve}"))
    code, said = folder("-q")
    line = (
        "policies/billing_test.yaml:7: what claude may do: claude, main: decision approve is expected, and it is deny: no rule "
        "matches; what is not allowed is denied; it would take claude/allow/0, if the branch were one of: feature/*"
    )
    assert code == 1
    assert line in said.splitlines()
    assert "Traceback" not in said
    assert ".py:" not in said
    assert "FAILED policies/billing_test.yaml::what claude may do::claude::main" in said
    assert "1 failed, 3 passed" in said


def test_where_it_stands_is_known_to_whoever_reports_it(folder: Folder) -> None:
    folder.write("policies/billing_test.yaml", CASES.replace("{feature: allow}", "{}"))
    code, _ = folder("-q", "--junit-xml", "told.xml", "-o", "junit_family=xunit1")
    assert code == 1
    assert 'file="policies/billing_test.yaml" line="6"' in (folder.path / "told.xml").read_text()  # from 0, as there


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("policies/billing_test.yaml", CASES.replace("feature: allow", "featrue: allow"),
         "yaml:7: tests[0].expect.claude.featrue: 'featrue' is none of the test's operations; did you mean feature?"),
        ("policies/billing_test.yaml", CASES.replace("claude: {", "cluade: {"),
         "billing_test.yaml:7: tests[0].expect.cluade: 'cluade' is no agent of the policy; did you mean claude?"),
        ("policies/billing.yaml", POLICY.replace("actions", "actoins"), "billing.yaml:5: "),
        ("policies/other_test.yaml", CASES, "the policy other.yaml cannot be read"),
        ("policies/billing_test.yaml", "- [", "billing_test.yaml:"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_an_error_and_no_traceback(
    folder: Folder, file: str, text: str, told: str
) -> None:
    folder.write(file, text)
    code, said = folder("-q")
    assert code == 2
    assert told in said
    assert "Traceback" not in said
    assert ".py:" not in said


def test_it_takes_nothing_that_it_was_not_told_of(folder: Folder) -> None:
    (folder.path / "pytest.ini").write_text("[pytest]\n")
    assert folder("-q")[0] == 5  # nothing collected
    folder.write("pytest.ini", INI)
    folder.write("other/thing_test.yaml", "nothing: that is a policy's\n")
    folder.write("policies/deeper/thing_test.yaml", "nothing: either\n")
    folder.write("policies/.hidden_test.yaml", "nothing: either\n")
    code, said = folder("-q")
    assert (code, "4 passed" in said) == (0, True), said


def test_a_folder_that_is_not_there_is_an_error(folder: Folder) -> None:
    folder.write("pytest.ini", INI.replace("= policies", "= policeis"))
    code, said = folder("-q")
    assert code == 4
    assert "banksman_policies: " in said
    assert "policeis is no folder" in said


def test_beside_tests_in_python(folder: Folder) -> None:
    folder.write("tests/test_x.py", "def test_x(): pass\n")
    assert "5 passed" in folder("-q")[1]


def test_it_costs_a_run_that_does_not_use_it_next_to_nothing() -> None:
    """pytest loads it in every run of an environment in which banksman is installed."""
    code = (
        f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; ours = ('banksman', 'pydantic', 'yaml', 'msgspec');"
        "print(sorted(name for name in set(sys.modules) - before if name.startswith(ours)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(["banksman", "banksman.policy", PLUGIN])


def test_it_is_installed_under_the_name_by_which_p_finds_it() -> None:
    """Under another one it would be loaded twice, which pytest refuses."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: pytest_plugin.__name__}
    for one in entry_points(group="pytest11"):
        assert one.value != PLUGIN or one.name == PLUGIN


def test_nothing_that_runs_imports_it() -> None:
    code = f"import sys; import {cases.__name__}, banksman.policy.reader; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
