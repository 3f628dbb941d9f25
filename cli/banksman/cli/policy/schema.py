"""`banksman policy schema`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = """The JSON Schema of the policy format, for editors that complete and check YAML by one. What a schema cannot say (that
a pattern can match, that a name is defined) `banksman policy lint` says."""
EXAMPLES = """
  banksman policy schema > policy.schema.json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:  # noqa: ARG001 - there is nothing to be chosen
    """Do it."""
    from banksman.policy.schema import schema

    print(json.dumps(schema(), indent=2))
    return 0
