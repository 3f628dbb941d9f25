"""The services that are known by name: their verbs, which of them only read, and how they name things.

A verb decides the default tier (reading runs freely, the rest is logged), what a freeze lets pass, and what `policy lint`
takes for a typing error. It never decides whether a rule matches: a service that is not here is as good as any.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Service(NamedTuple):
    """`reads` and `writes`: its verbs; where `open`, others may be right as well. `names`: what its resources look like."""

    title: str
    names: str
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    open: bool = False
    branches: bool = False

    @property
    def verbs(self) -> frozenset[str]:
        return self.reads | self.writes


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GIT_READS = _words(
    "blame cat_file clone describe diff fetch grep log ls-files ls-remote ls-tree ls_files ls_remote "
    "ls_tree pull rev_parse shortlog"
    " show status"
)
_GIT_WRITES = _words(
    "add am apply branch checkout cherry_pick clean commit create_branch create_tag delete_branch "
    "delete_tag force_push init merge mv"
    " push rebase remote reset restore revert rm stash submodule switch tag update_ref worktree"
)
_STRIPE_THINGS = _words(
    "accounts balance charges checkout coupons credit_notes customers disputes events files invoices "
    "payment_intents payment_links"
    " payment_methods payouts plans prices products promotion_codes quotes refunds setup_intents "
    "subscriptions tax_rates transfers"
    " webhook_endpoints"
)

SERVICES: dict[str, Service] = {
    "git": Service("Git repositories", "`owner/repository`, without `.git`", _GIT_READS, _GIT_WRITES, branches=True),
    "github": Service(
        "GitHub beside git: issues, pull requests, releases", "`owner/repository`",
        _words("get_issue get_pull_request get_release list_issues list_pull_requests list_releases list_runs search"),
        _words(
            "approve_pull_request close_issue close_pull_request comment create_issue create_pull_request "
            "create_release create_repository"
            " delete_repository dispatch_workflow edit_issue edit_pull_request merge_pull_request set_secret"
        ),
        open=True, branches=True,
    ),
    "aws": Service("Amazon Web Services", "an ARN; actions as IAM names them, `s3:GetObject`, in any case", open=True),
    "stripe": Service(
        "Stripe", "the id of a thing, `ch_123`",
        frozenset(f"{thing}:{verb}" for thing in _STRIPE_THINGS for verb in ("list", "read", "search")),
        frozenset(
            f"{thing}:{verb}"
            for thing in _STRIPE_THINGS
            for verb in ("cancel", "capture", "confirm", "create", "delete", "finalize", "pay", "send", "update", "void")
        ),
    ),
    "shell": Service("Commands on a machine", "the program, `/usr/bin/make`", writes=_words("exec run"), open=True),
    "http": Service(
        "Requests to a host", "`host/path`, or a URL; in lower case up to the path", _words("GET HEAD OPTIONS"),
        _words("DELETE PATCH POST PUT"),
    ),
    "postgres": Service(
        "PostgreSQL", "`database/schema/table`", _words("explain select show"),
        _words(
            "alter_database alter_table call copy create_database create_index create_table create_user delete "
            "drop_database drop_index"
            " drop_schema drop_table drop_user grant insert merge revoke truncate update vacuum"
        ),
    ),
    "kubernetes": Service(
        "Kubernetes", "`namespace/kind/name`", _words("auth_can_i describe diff explain get list logs top watch"),
        _words(
            "annotate apply attach autoscale cordon cp create debug delete drain edit exec expose label patch "
            "port_forward replace rollout"
            " rollout_restart rollout_undo run scale set taint uncordon update"
        ),
    ),
    "slack": Service(
        "Slack", "a channel, `#payments`, or a person, `@ann`",
        _words("get_channel get_thread get_user list_channels list_messages list_users read search"),
        _words(
            "add_reaction archive_channel create_channel delete_message invite join_channel post_message "
            "schedule_message send_message"
            " set_topic update_message upload_file"
        ),
        open=True,
    ),
    "filesystem": Service(
        "Files", "a path, absolute or from where the agent works",
        _words("exists glob grep list read stat"),
        _words("append chmod chown copy create_directory delete edit mkdir move remove rename write"),
        open=True,
    ),
    "mcp": Service("Tools of an MCP server", "the server's name; actions are its tools", open=True),
    "anthropic": Service(
        "The Anthropic API", "a model, `claude-sonnet-4-5`",
        _words(
            "batches:read batches:results files:content files:list files:read messages:count_tokens models:list "
            "models:read"
        ),
        _words("batches:cancel batches:create batches:delete files:create files:delete messages:create"),
    ),
}  # fmt: skip

READ_ONLY_AWS = ("batchget", "describe", "get", "head", "list", "lookup", "query", "scan", "search", "select")
"""AWS: what an action's name begins with after its service (`s3:GetObject`), in lower case."""

READ_ONLY_WORDS = _words(
    "cat count describe diff exists fetch find get glob grep head list lookup ls query read retrieve "
    "search show stat status view watch"
)
"""Services that are not known, or open, and a verb that is not: the first word of the verb."""

_AFTER = re.compile(r"[:./]|__").split
_FIRST_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+").match


def is_read_only(service: str, action: str) -> bool:
    """Whether the action (as matched, so AWS in lower case) is taken to read only. For a verb that nobody knows, a guess."""
    known = SERVICES.get(service)
    if service == "aws":
        return _reads_aws(action)
    if known is not None and action in known.verbs:
        return action in known.reads
    if service == "shell" or (known is not None and not known.open):
        return False
    word = _FIRST_WORD(_AFTER(action)[-1])
    return word is not None and word[0].lower() in READ_ONLY_WORDS


def surely_reads(service: str, action: str) -> bool:
    """The same without guesses: what a freeze lets pass."""
    known = SERVICES.get(service)
    return _reads_aws(action) if service == "aws" else known is not None and action in known.reads


def _reads_aws(action: str) -> bool:
    service, _, verb = action.partition(":")
    return bool(service) and ":" not in verb and verb.startswith(READ_ONLY_AWS)
