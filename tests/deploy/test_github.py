"""deploy/github: the workflow is one, and its steps do in a real repository what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

FILE = Path(__file__).parents[2] / "deploy" / "github" / "policy.yml"
POLICY = """project: billing
owner: ann
agents:
  bot:
    budget: {daily_tokens: 5}
    allow: [{service: git, actions: [push], resources: [acme/billing], branches: [main]}]
"""


def steps() -> dict[str, str]:
    """Name -> script."""
    jobs = yaml.safe_load(FILE.read_text())["jobs"]
    return {step["name"]: step["run"] for step in jobs["policy"]["steps"] if "name" in step}


def test_it_is_a_workflow() -> None:
    vendored = resources.files("check_jsonschema.builtin_schemas.vendor").joinpath("github-workflows.json")
    workflow: dict[Any, Any] = yaml.safe_load(FILE.read_text())
    workflow["on"] = workflow.pop(True)  # what YAML 1.1 makes of `on`
    jsonschema.validate(workflow, json.loads(vendored.read_text()))


def test_its_steps_check_a_change_and_write_what_it_changes(tmp_path: Path) -> None:
    repository, runner = tmp_path / "repository", tmp_path / "runner"
    (repository / "policies").mkdir(parents=True)
    runner.mkdir()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RUNNER_TEMP": str(runner), "NO_COLOR": "1",
        "BANKSMAN_OPERATOR_TOKEN": "", "GIT_CONFIG_GLOBAL": "/dev/null",
    }  # fmt: skip

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script], cwd=repository, env=environment, text=True, capture_output=True,
        )  # fmt: skip

    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@acme.example"]
        return subprocess.run(["git", *who, *words], cwd=repository, check=True, text=True, capture_output=True).stdout

    git("init", "-q")
    (repository / "policies" / "billing.yaml").write_text(POLICY)
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    environment["BASE"] = git("rev-parse", "HEAD").strip()
    (repository / "policies" / "billing.yaml").write_text(POLICY.replace("[main]", "[main, release]"))
    (repository / "policies" / "other.yaml").write_text(POLICY.replace("billing", "other", 1))
    git("add", "-A")
    git("commit", "-q", "-m", "two")
    for name in ("lint", "test", "what it changes"):
        done = run(steps()[name])
        assert done.returncode == 0, (name, done.stdout, done.stderr)
    comment = (runner / "comment.md").read_text()
    assert "### policies/billing.yaml" in comment
    assert "looser   bot: git push: deny -> allow\n           e.g. acme/billing release" in comment
    assert "### policies/other.yaml\n```\na new policy\n```" in comment
    (repository / "policies" / "billing.yaml").write_text(POLICY.replace("[push]", "[pusch]"))
    failed = run(steps()["lint"])
    assert failed.returncode == 1
    assert "::error file=policies/billing.yaml,line=6,title=unknown-verb::" in failed.stdout


def test_a_policy_that_does_not_answer_as_expected_fails_it(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "billing.yaml").write_text(POLICY)
    (tmp_path / "policies" / "billing_test.yaml").write_text(
        "operations: {push: {service: git, action: push, resource: acme/billing, branch: x}}\n"
        "tests: [{name: t, expect: {bot: {push: allow}}}]\n"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", steps()["test"]], cwd=tmp_path, env=os.environ | {"PATH": path}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "decision allow is expected, and it is deny" in done.stdout
