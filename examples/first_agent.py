"""An agent under a policy: it reports what it does, and asks before it acts. docs/tutorial.md walks through it.

BANKSMAN_TOKEN_FILE=buyer.credential python examples/first_agent.py [SESSION]
"""

from __future__ import annotations

import sys

from banksman.producers import Emitter, NotAllowed, govern


@govern(service="git", action="push", resource=lambda repo, _: repo, branch=lambda _, branch: branch)
def push(repo: str, branch: str) -> str:
    """What the agent may do stands in the policy, not here: this runs only when the answer is `allow`."""
    return f"pushed {branch} to {repo}"


@govern(service="stripe", action="refunds:create", resource=lambda charge, _: charge)
def refund(charge: str, amount: int) -> str:
    """Pay a customer back."""
    return f"paid back {amount} of {charge}"


@govern(service="git", action="force_push", resource=lambda repo, _: repo, branch=lambda _, branch: branch)
def force_push(repo: str, branch: str) -> str:
    """Somebody has asked for it."""
    return f"{branch} of {repo} is what I say it is"


def main(name: str | None = None) -> None:
    """One session."""
    with Emitter.from_settings() as emitter, emitter.session(name) as session:
        print(f"session {session.id}")
        session.prompt("Fix the checkout, then pay the customer back.")
        session.model_call("claude-sonnet-4-5", input_tokens=1200, output_tokens=90)
        for tool, *given in (
            (push, "acme/shop", "fix/checkout"),
            (push, "acme/shop", "main"),
            (force_push, "acme/shop", "fix/checkout"),
            (refund, "charge/ch_1", 4900),
        ):
            try:
                print(f"  done      {tool(*given)}")
            except NotAllowed as no:
                print(f"  not done  {tool.__name__} {given[1]}: {no}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
