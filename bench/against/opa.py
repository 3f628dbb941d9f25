"""OPA: our rules as Rego and data in a bundle, its server for servers.py.

The rules are found by agent, service and action in the data, so that only globs are evaluated: the best case for OPA. Actions
with a star stand apart, under `*`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from against.fetch import opa
from agent_rules import agent_rules

PATH = "/v1/data/banksman/decision"
REGO = """package banksman

import rego.v1

named := object.get(data.rules, [input.agent, input.service, input.action], [])

starred := object.get(data.rules, [input.agent, input.service, "*"], [])

answers contains rule.answer if {
	some rule in named
	matches(rule)
}

answers contains rule.answer if {
	some rule in starred
	some pattern in rule.actions
	glob.match(pattern, ["/"], input.action)
	matches(rule)
}

matches(rule) if {
	some pattern in rule.resources
	glob.match(pattern, ["/"], input.resource)
	not elsewhere(rule)
}

elsewhere(rule) if {
	rule.branches
	not on_branch(rule)
}

on_branch(rule) if {
	some pattern in rule.branches
	glob.match(pattern, ["/"], input.branch)
}

default decision := "deny"

decision := "deny" if {
	"deny" in answers
} else := "approve" if {
	"approve" in answers
} else := "allow" if {
	"allow" in answers
}
"""
ANSWERS = {"never": "deny", "require_approval": "approve", "allow": "allow"}


def data(agents: int) -> dict[str, Any]:
    """Agent -> service -> action -> rules. In actions and ARNs our star crosses everything, which is two stars here."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for i in range(agents):
        for kind, answer in ANSWERS.items():
            for rule in agent_rules(i)[kind]:
                service = rule["service"]
                wide = service != "git"
                resources = [_wide(one) if wide else one for one in rule.get("resources", ["**"])]
                made = {"answer": answer, "resources": resources}
                if "branches" in rule:
                    made["branches"] = rule["branches"]
                for action in rule["actions"]:
                    starred = made | {"actions": [_wide(action)]} if "*" in action else made
                    found[f"agent-{i}"][service]["*" if "*" in action else action].append(starred)
    return {"rules": found}


def _wide(pattern: str) -> str:
    return pattern if "**" in pattern else pattern.replace("*", "**")


def bundle(folder: Path, agents: int) -> Path:
    """The compiled bundle, as `opa build` makes it."""
    source, made = folder / "opa", folder / "bundle.tar.gz"
    source.mkdir()
    (source / "policy.rego").write_text(REGO)
    (source / "data.json").write_text(json.dumps(data(agents)))
    command = [str(opa()), "build", "--bundle", str(source), "--output", str(made)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return made


def argv(made: Path, port: int, *, logs: bool) -> list[str]:
    """The server as its documentation runs it in production; with `logs` each decision goes to its console log."""
    command = [str(opa()), "run", "--server", "--bundle", str(made), "--addr", f"127.0.0.1:{port}"]
    command += ["--log-level", "error", "--disable-telemetry"]
    return [*command, "--set", "decision_logs.console=true"] if logs else command


def environment() -> dict[str, str]:
    """One core, one thread that runs Go."""
    return dict(os.environ) | {"GOMAXPROCS": "1"}
