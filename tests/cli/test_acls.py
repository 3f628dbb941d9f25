"""`migrate acls`: for whom it makes ACLs when nobody is named. What each of them allows is in `tests/e2e/test_secured.py`."""

from __future__ import annotations

import shlex

from tests.cli.conftest import Shell

from banksman import acls


def test_who_has_done_its_one_act_is_not_given_its_rights_again(shell: Shell) -> None:
    """Somebody makes ACLs again, after an upgrade: `bootstrap`, which could write operators into `control`, is not in it."""
    everybody = {f"User:banksman-{kind}" for kind in acls.KINDS} - {"User:banksman-bootstrap"}
    assert {one["principal"] for one in shell("migrate", "acls", "--json").json["acls"]} == everybody
    said = [shlex.split(line) for line in shell("migrate", "acls").out.splitlines()]
    assert {words[words.index("--allow-principal") + 1] for words in said} == everybody


def test_who_is_named_gets_them_and_only_they(shell: Shell) -> None:
    made = shell("migrate", "acls", "--user", "bootstrap=boot", "--json").json["acls"]
    assert {(one["kind"], one["principal"], one["name"]) for one in made} == {
        ("bootstrap", "User:boot", "banksman.control")
    }
    assert {one["operation"] for one in made} == {"Read", "Write"}


def test_a_command_becomes_its_own_reverse_as_the_docs_do_it(shell: Shell) -> None:
    """docs/security.md puts `--remove --force` in the place of `--add`."""
    for line in shell("migrate", "acls").out.splitlines():
        assert line.count(" --add ") == 1
