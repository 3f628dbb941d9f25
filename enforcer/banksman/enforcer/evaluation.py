"""What OpenID AuthZEN asks (Authorization API 1.0), as a question of ours.

    subject   {type, id, properties}    whom it is about: the agent itself, or somebody whom a gateway asks about
    action    {name, properties}    ->  action, args
    resource  {type, id, properties}->  service, resource; properties.branch -> branch
    context   {session, …}          ->  session; approval.id -> approval; business_justification -> reason

What else the properties and the context hold is a claim of whoever asks. It counts where the policy lists it (`claims`), and
where the policy does not say something else of the subject itself (`subjects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from banksman import codec
from banksman.enforcer.question import Question, Text
from banksman.events import is_name
from banksman.http_problem import Problem, problem
from banksman.policy.holds import Facts
from banksman.policy.subjects import AGENT, attributes, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from banksman.enforcer.callers import Caller
    from banksman.policy.compile import Bundle

NO_SESSION = "authzen"
"""The session of a question that names none."""

KEYS = ("subject", "action", "resource", "context")

MACHINERY = ("access_request", "approval", "evaluation_id", "evaluated_at", "reason")
"""What the context holds for the protocol itself: no approval is compared by it, whatever a policy lists."""

ACTOR = "subject.act"
"""Who acts for the subject. A caller may leave it to `client.actor` of its access request."""

JUSTIFICATION = "business_justification"
"""Of the context: words for those who approve."""

Short = Annotated[str, Meta(max_length=4096)]


class Subject(msgspec.Struct, gc=False):
    """Whom it is about."""

    type: Short
    id: Short
    properties: dict[str, Any] | None = None


class Action(msgspec.Struct, gc=False):
    """What is to be done. `properties` are its arguments."""

    name: Text
    properties: dict[str, Any] | None = None


class Resource(msgspec.Struct, gc=False):
    """What it is done to: `type` is the service. `properties.branch` is the branch."""

    type: Text
    id: Text
    properties: dict[str, Any] | None = None


class AccessRequest(msgspec.Struct, gc=False):
    """One question. Fields that are not known are ignored."""

    subject: Subject
    """`type`, `id`, `properties`"""
    action: Action
    """`name`, `properties`"""
    resource: Resource
    """`type`, `id`, `properties`"""
    context: dict[str, Any] | None = None
    """`session`, what the policy believes the caller about, `business_justification`, and `approval` where one was given"""


_MODELS: dict[str, Any] = {"subject": Subject, "action": Action, "resource": Resource, "context": dict[str, Any] | None}


class Evaluation(Question, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A question of ours that came as an AuthZEN request."""

    subject: Subject
    claimed: dict[str, dict[str, Any] | None]
    """By root (`subject`, `resource`, `context`): what whoever asks says of it."""

    def facts(self, bundle: Bundle, project: str) -> Facts:
        compiled = bundle.policies.get(project)
        if compiled is None:
            return Facts(self.args)
        policy, who = compiled.policy, self.subject
        claims = {attribute: found for attribute in policy.claims if (found := self._claim(attribute)) is not None}
        return Facts(self.args, subject=attributes(policy, who.type, who.id), claims=claims)

    def whom(self) -> str | None:
        """As it stands on record; None: it is the agent itself."""
        return None if self.subject.type == AGENT else written(self.subject.type, self.subject.id)

    def counted(self, bundle: Bundle, project: str) -> list[str]:
        """Of the context what the policy believes the caller about, by its first name; and who acts, if it counts that."""
        compiled = bundle.policies.get(project)
        listed = compiled.policy.claims if compiled is not None else ()
        names = {".".join(attribute.split(".")[:2]) for attribute in listed}
        return sorted(
            name
            for name in names
            if name == ACTOR or (name.startswith("context.") and name.partition(".")[2] not in MACHINERY)
        )

    def whole(self, counted: Sequence[str]) -> dict[str, Any]:
        """As it was asked, before any normalisation. Who acts for the subject may be told elsewhere the second time."""
        context = self.claimed["context"] or {}
        of_subject = self.claimed["subject"] or {}
        if ACTOR not in counted:
            of_subject = {name: value for name, value in of_subject.items() if name != "act"}
        members = [name.partition(".")[2] for name in counted if name != ACTOR]
        return {
            "subject": [self.subject.type, self.subject.id, of_subject],
            "action": [self.action, self.args],
            "resource": [self.service, self.resource, self.claimed["resource"] or {}],
            "session": self.session,
            "context": {name: context[name] for name in members if name in context},
        }

    def asks_anew(self) -> bool:
        return True

    def _claim(self, attribute: str) -> Any:
        root, *steps = attribute.split(".")
        found: Any = self.claimed.get(root)
        for step in steps:
            found = found.get(step) if isinstance(found, dict) else None
        return found


def question_of(caller: Caller, asked: Any) -> Evaluation:
    """A parsed body, or one item of a batch with its defaults put in -> the question. Problem 400 names the field that is
    missing or has a wrong type; 403: about another agent.
    """
    request: AccessRequest = _converted(asked, AccessRequest, "")
    _for_itself(caller, request.subject)
    context, of_resource = request.context or {}, request.resource.properties or {}
    session, branch = context.get("session", NO_SESSION), of_resource.get("branch")
    if not isinstance(session, str) or not is_name(session):
        raise problem(
            400, "context.session: must be a name of at most 128 letters, digits and . _ @ : -", field="context.session"
        )  # fmt: skip
    if branch is not None and (not isinstance(branch, str) or len(branch) > 65536):
        raise problem(400, "resource.properties.branch: must be text", field="resource.properties.branch")
    words, approval = context.get(JUSTIFICATION), context.get("approval")
    if words is not None and (not isinstance(words, str) or len(words) > 16384):
        field = f"context.{JUSTIFICATION}"
        raise problem(400, f"{field}: must be text of at most 16384 characters", field=field)
    return Evaluation(
        session=session,
        service=request.resource.type,
        action=request.action.name,
        resource=request.resource.id,
        branch=branch,
        args=request.action.properties,
        reason=words,
        approval=None if approval is None else _approval(approval),
        subject=request.subject,
        claimed={"subject": request.subject.properties, "resource": of_resource, "context": context},
    )


def _approval(given: Any) -> str:
    """Its id; what else stands there is ours, and known here. Problem 400."""
    if not isinstance(given, dict):
        raise problem(400, "context.approval: must be an object", field="context.approval")
    name = given.get("id")
    if not isinstance(name, str) or len(name) > 128:
        raise problem(400, "context.approval.id: must be the id of an approval", field="context.approval.id")
    return name


def check_defaults(caller: Caller, given: Mapping[str, Any]) -> None:
    """What a batch says for all its items. Problem 400, 403, as for one question; what is left out may stand in the items."""
    for key in KEYS:
        if key in given:
            found = _converted(given[key], _MODELS[key], key)
            if key == "subject":
                _for_itself(caller, found)


def _for_itself(caller: Caller, subject: Subject) -> None:
    if subject.type == AGENT and subject.id != caller.name:
        raise problem(403, "an agent may not ask for another agent", field="subject.id")


def _converted(value: Any, model: Any, path: str) -> Any:
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        raise wrong(error, path) from None


def wrong(error: Exception, path: str = "") -> Problem:
    """A sentence of msgspec's as a 400, with the field in its text: what a gateway logs of an error is often only that."""
    told = codec.invalid(error)
    field = ".".join(part for part in (path, told.field) if part)
    return problem(400, f"{field}: {told.message}" if field else told.message, field=field)
