"""`*_test.yaml` of policies as tests of pytest: what `banksman policy test` runs, a test for each agent and operation.

    [tool.pytest.ini_options]
    banksman_policies = ["policies"]     # the folders whose *_test.yaml are such tests; without it nothing is collected
    testpaths = ["tests", "policies"]    # what `pytest` alone collects

pytest loads this in every run of an environment that has banksman, so it imports nothing of it before it has found such a file.
Nothing else imports this module: pytest is no dependency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from banksman.policy.cases import Case, Result, Suite

OPTION, SUFFIX = "banksman_policies", "_test.yaml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting that says where such tests are."""
    about = "folders whose *_test.yaml are tests of policies (banksman policy test)"
    parser.addini(OPTION, about, type="paths", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """UsageError: a folder of the setting is not there, so that none of its tests would be run."""
    for folder in config.getini(OPTION):
        if not folder.is_dir():
            raise pytest.UsageError(f"{OPTION}: {folder} is no folder")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Those of the folders' top level, as the enforcer reads it."""
    if not file_path.name.endswith(SUFFIX) or file_path.name.startswith("."):
        return None
    folders = [folder.resolve() for folder in parent.config.getini(OPTION)]
    if file_path.parent.resolve() not in folders:
        return None
    made: PolicyTests = PolicyTests.from_parent(parent, path=file_path)
    return made


class NotAsExpected(Exception):
    """A policy that answers otherwise than its test says."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.why)
        self.result = result


class PolicyTests(pytest.File):
    """A whole file; in it its tests, in these their agents, and of each agent the operations."""

    def collect(self) -> Iterator[pytest.Collector]:
        """CollectError: the file, or its policy, is wrong."""
        from banksman.errors import InvalidPolicy
        from banksman.policy.cases import suite

        try:
            asking = suite(self.path)
        except InvalidPolicy as error:
            raise self.CollectError(str(error)) from None
        for name, cases in _by("test", asking.cases):
            yield _Cases.from_parent(self, name=name, suite=asking, cases=cases, then="agent")


class _Cases(pytest.Collector):
    """Those of one test, or of one of its agents. `then`: what tells them apart further."""

    def __init__(self, *, suite: Suite, cases: Sequence[Case], then: str, **named: Any) -> None:
        super().__init__(**named)
        self._suite, self._cases, self._then = suite, cases, then

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        for name, cases in _by(self._then, self._cases):
            if self._then == "agent":
                yield _Cases.from_parent(self, name=name, suite=self._suite, cases=cases, then="operation")
            else:
                for case in cases:
                    yield _Case.from_parent(self, name=name, suite=self._suite, case=case)


class _Case(pytest.Item):
    def __init__(self, *, suite: Suite, case: Case, **named: Any) -> None:
        super().__init__(**named)
        self._suite, self._case = suite, case

    def runtest(self) -> None:
        result = self._suite.ask(self._case)
        if result.why:
            raise NotAsExpected(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """As `banksman policy test` shows it: where it stands in the file, and why. A traceback would be of banksman."""
        from banksman.policy.cases import sentence

        if not isinstance(excinfo.value, NotAsExpected):
            return super().repr_failure(excinfo, style)
        return sentence(self._shown(), excinfo.value.result)

    def reportinfo(self) -> tuple[Path, int, str]:
        case = self._case
        return self.path, case.line - 1, f"{case.test}: {case.agent}, {case.operation}"

    def _shown(self) -> Path:
        here = self.config.invocation_params.dir
        return self.path.relative_to(here) if self.path.is_relative_to(here) else self.path


def _by(what: str, cases: Sequence[Case]) -> list[tuple[str, list[Case]]]:
    """In the order of the file."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(getattr(case, what), []).append(case)
    return list(found.items())
