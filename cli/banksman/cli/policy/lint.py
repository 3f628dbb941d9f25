"""`banksman policy lint`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from banksman.cli import show
from banksman.cli.policy import files

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from banksman.policy.lint import Finding

HELP = """What is wrong with policies (errors: the enforcer refuses the file, or a rule can never do what it says) and what is
likely to be (warnings), each with its line and a mend. That a rule never decides is proved by going through all operations
there are. Exit code 1: there is an error; with --strict also for a warning."""
EXAMPLES = """
  banksman policy lint
  banksman policy lint policies/billing.yaml --strict
  banksman policy lint --format github
  banksman policy lint --format sarif > lint.sarif
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    files.argument(parser, "policy files")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    parser.add_argument(
        "--format", choices=("text", "json", "github", "sarif"), default="text", help="for people, programs or CI"
    )


def run(args: argparse.Namespace) -> int:
    """Do it."""
    from banksman.errors import InvalidPolicy
    from banksman.policy.lint import lint, two_files
    from banksman.policy.load import load

    paths, found, projects = files.found(args.paths), list[Any](), list[tuple[str, str]]()
    for path in paths:
        raw = path.read_bytes()
        found += lint(raw, str(path))
        try:
            projects.append((str(path), load(raw, str(path)).policy.project))
        except InvalidPolicy:
            continue  # lint has said so
    found += two_files(projects)
    {"text": _text, "json": _json, "github": _github, "sarif": _sarif}[args.format](found)
    errors = sum(one.level == "error" for one in found)
    if args.format == "text":
        warnings = len(found) - errors
        show.note(f"{show.count(len(paths), 'file')}: {show.count(errors, 'error')}, {show.count(warnings, 'warning')}")
    return 1 if errors or (args.strict and found) else 0


def _text(found: Sequence[Finding]) -> None:
    for one in found:
        rule = f" {one.rule}:" if one.rule else ""
        mend = f" -> {one.mend}" if one.mend else ""
        show.say(
            f"{one.file}:{one.line}: {one.level}: {one.code}:{rule} {one.message}{mend}",
            "red" if one.level == "error" else "",
        )


def _json(found: Sequence[Finding]) -> None:
    show.emit({"findings": [one._asdict() for one in found]})


def _github(found: Sequence[Finding]) -> None:
    """Workflow commands: https://docs.github.com/actions/reference/workflow-commands-for-github-actions."""
    for one in found:
        said = f"{one.rule}: {one.message}" if one.rule else one.message
        text = f"{said} -> {one.mend}" if one.mend else said
        print(f"::{one.level} file={_property(one.file)},line={one.line},title={one.code}::{_data(text)}")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _sarif(found: Sequence[Finding]) -> None:
    """OASIS SARIF 2.1.0."""
    from importlib.metadata import version

    from banksman.policy.lint import CODES

    rules = [
        {"id": code, "shortDescription": {"text": about}, "defaultConfiguration": {"level": level}}
        for code, (level, about) in CODES.items()
    ]
    results = [
        {
            "ruleId": one.code, "level": one.level,
            "message": {"text": f"{one.message}{f' -> {one.mend}' if one.mend else ''}"},
            "locations": [
                {"physicalLocation": {
                    "artifactLocation": {"uri": one.file}, "region": {"startLine": max(1, one.line)}}}
            ],
        }
        for one in found
    ]  # fmt: skip
    driver = {"name": "banksman policy lint", "version": version("banksman"), "rules": rules}
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }  # fmt: skip
    print(json.dumps(log, indent=1))
