"""`banksman policy VERB`: policies as code. Each verb is a module of this folder, as those of `banksman` are of theirs."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

HELP = """Policies as code: what is wrong with them, whether they answer as expected, why they answer as they do, and what a
change of them changes, also to what was really asked. `lint`, `test` and `diff` need no server: they are for pull requests."""
EXAMPLES = """
  banksman policy lint
  banksman policy test policies/
  banksman policy explain --agent claude-invoice-01 git push acme/billing main
  banksman policy diff old.yaml new.yaml
  banksman policy backtest policies/billing.yaml --since 30d
  banksman policy suggest --agent claude-invoice-01 --since 14d
  banksman policy show billing-automation@v2+sha256:0123456789ab
  banksman policy schema > policy.schema.json
"""

VERBS = {
    "lint": "what is wrong with policies, and what is likely to be",
    "test": "whether policies answer as their test files expect",
    "explain": "why an operation is answered as it is",
    "diff": "which operations get another answer",
    "backtest": "what a candidate would have answered to what agents really asked",
    "suggest": "a policy of least privilege, from what an agent really did",
    "show": "the text of a policy that was in force",
    "schema": "the JSON Schema of the format, for editors",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every verb."""
    verbs = parser.add_subparsers(dest="verb", metavar=" | ".join(VERBS), required=True)
    for name, about in VERBS.items():
        module = _module(name)
        one = verbs.add_parser(
            name, help=about, description=module.HELP, epilog=f"examples:\n{module.EXAMPLES.strip(chr(10))}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        module.arguments(one)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    code: int = _module(args.verb).run(args)
    return code


def _module(verb: str) -> Any:
    return importlib.import_module(f"{__name__}.{verb}")
