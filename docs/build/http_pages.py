"""docs/reference/http-enforcer.md from the document that the enforcer itself gives (`/openapi.json`)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from event_pages import fields_table

from banksman.enforcer.access_request import Submission
from banksman.enforcer.acts import Act
from banksman.enforcer.admin import NewAgent, NewOperator
from banksman.enforcer.answers import Answer
from banksman.enforcer.evaluation import AccessRequest, Action, Resource, Subject
from banksman.enforcer.inbox import Verdict
from banksman.enforcer.openapi import document
from banksman.enforcer.question import ExplainQuestion, Question, ReplayedQuestion

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = {
    model.__name__: model
    for model in (
        Question,
        ReplayedQuestion,
        ExplainQuestion,
        Answer,
        NewAgent,
        NewOperator,
        Act,
        Verdict,
        AccessRequest,
        Subject,
        Action,
        Resource,
        Submission,
    )
}
INTRO = """# The enforcer over HTTP

`banksman serve enforcer`, port 7700 (`BANKSMAN_ENFORCER_HOST`, `BANKSMAN_ENFORCER_PORT`). It answers what an agent may do, takes in what
an agent did, and knows who is who. Whatever is not a 200 with `"decision": "allow"` means no.

`Authorization: Bearer bma_…` is an agent's token, `bmo_…` an operator's; each is refused (403) where the other belongs. Bodies are one
JSON document in UTF-8 with `Content-Type: application/json`, plain or in gzip or deflate; two keys of one name, NaN and numbers that lose digits are
400, a field that is not known or has a wrong value is 422. `Host` and `Origin` are checked, there are no CORS headers. Errors are
RFC 9457 problem details: `type title status detail`, and `field` where one is wrong. 503 and 429 carry `Retry-After`.

```
$ curl -s http://127.0.0.1:7700/v1/decide -H "Authorization: Bearer $BANKSMAN_TOKEN" -H 'Content-Type: application/json' \\
    -d '{"session": "d97e2169", "service": "git", "action": "push", "resource": "acme/shop", "branch": "main"}'
{"id":"0190…","decision":"approve","tier":3,"rule":"buyer/require_approval/0","policy":"shop","policy_version":"shop@v3+sha256:…",
 "reason":"approval_required","valid_until":"2026-11-25T18:00:09.115000Z","approval":"0190…"}
```

The same question again (same `id`, same body, within ten minutes) gets the same answer; another question under its `id` is 409.
`valid_until` is the end of the lease under which was answered: who has not acted by then asks again. `POST /v1/events` is answered when
Kafka has the events; a batch of which one is refused is refused whole. With an admin's token and `Banksman-Replay: RUN` both take what
[`banksman replay`](replay.md) sends.

`kill`, `revoke`, `restore`, `pause` and `resume` are answered when no replica can answer without knowing of them: `in_force` of
`replicas` said so, `fenced` names those that did not and whose lease has run out since, so that they answer nothing before they know.
A 503 means that it may or may not be in force: say it again. From then on what is asked gets a recorded `deny` with the reason
`killed`, `revoked` or `paused`, and as `rule` the place of the control on the log (`control/4711`); an answer that was under way
becomes a 503. Events are taken all the same: what a stopped agent did is what one wants to know. See [promises](../promises.md) for
what this does not cover.

An agent that has spent its budget gets what its policy wants then, `deny` or `approve` with the reason `exhausted`, the rule
`budget/tokens` or `budget/usd`, and `budget`: what is spent, of what, until when. Where nobody has counted lately it is a 503 that begins
with `budget_unknown`.

An `approve` names its approval. It is pending until the people whom the policy wants have said yes, one of them no, or `expires_at`
has come; `GET /v1/approvals/{approval}?wait=25` answers as soon as that is so. The same question with a new `id` and with `approval`
is then an `allow` with the reason `approved`, if agent, session, operation and arguments are the same, the policy still asks for an
approval, no control holds, and no other request was first: the `id` of the question is the request, and asked again it wins again, on
any replica. Else it is a `deny` that says which of these it was. Whom it is about cannot give it.

## OpenID AuthZEN

An API gateway, or whatever else speaks the [Authorization API 1.0](https://openid.net/specs/authorization-api-1_0.html), can ask in its
words: `POST /access/v1/evaluation`, and up to 100 questions at once by `POST /access/v1/evaluations`. It has an agent's token, and it is its
rules that hold, whoever it asks about.

```
$ curl -s http://127.0.0.1:7700/access/v1/evaluation -H "Authorization: Bearer $BANKSMAN_TOKEN" -H 'Content-Type: application/json' \\
    -d '{"subject": {"type": "user", "id": "ann"}, "action": {"name": "can_update_todo"},
         "resource": {"type": "todo", "id": "7", "properties": {"ownerID": "ann@acme.example"}}}'
{"decision":true,"context":{"id":"0190…","reason":"allowed","message":"an `allow` rule matches, and nothing stricter does","tier":2,
 "rule":"todo-backend/allow/0","policy_version":"todo@v1+sha256:…","valid_until":"2026-11-25T18:00:09.115000Z"}}
```

| of the request | is |
|---|---|
| `resource.type`, `resource.id`, `resource.properties.branch` | service, resource, branch |
| `action.name`, `action.properties` | action, arguments (`args.NAME` in conditions) |
| `context.session` | the session; `authzen` where there is none |
| `context.approval.id` | the approval that was given for it |
| `context.business_justification` | words for those who approve |
| `subject` of type `agent` | the caller itself; another agent's name is 403 |
| any other `subject` | whom it is about: `subject.type` and `subject.id` in conditions, `subject` on record as `TYPE:ID` |
| `subject.properties`, `resource.properties`, `context` | claims: `subject.NAME`, `resource.NAME`, `context.NAME`, where the policy lists them |

```yaml
project: todo
subjects: {user: {ann: {email: ann@acme.example, roles: [editor]}}}   # the policy's own word goes before a claim
claims: [resource.ownerID]                                            # what the gateway is believed about
agents:
  todo-backend:
    allow:
      - service: todo
        actions: [can_update_todo]
        when: {subject.roles: {has: editor}, resource.ownerID: {is: {attr: subject.email}}}
```

Each question is a decision of its own, on record before it is answered. Only an `allow` is `true`. What waits for a human is `false`, with
the reason `approval_required` and what an access request needs (below) in the context; it is asked for that one subject. There are no search
endpoints. In a batch, an item's `subject`, `action`, `resource` and `context` replace
the whole of the same key beside `evaluations`; `options.evaluations_semantic` is `execute_all` (the default), `deny_on_first_deny` or
`permit_on_first_permit`; an item that is wrong is `false` with `context.error` (`status message field`), and nothing is on record of it. What cannot
be decided or recorded is a 503 for all of them. Fields that are not known are ignored, `X-Request-ID` comes back, and whatever is wrong with a
body, also its type, is a 400. Behind a proxy that ends TLS the metadata gives `https` addresses if the proxy sends
`X-Forwarded-Proto: https`.

## Access requests

What waits for a human can be asked for, waited for and used by the [Access Request and Approval
Profile](https://openid.github.io/authzen/authzen-access-request-approval-profile-1_0.html), draft 1 of it, whoever it is about.

```
$ curl -s http://127.0.0.1:7700/access/v1/evaluation … -d '{"subject": {"type": "user", "id": "alice"}, "action": {"name": "can_read"},
         "resource": {"type": "document", "id": "q4-plan"}}'
{"decision":false,"context":{"reason":"approval_required","evaluation_id":"0190….0190….5f…","evaluated_at":"2026-11-25T18:00:08.020000Z",
 "access_request":{"expires_at":"2026-11-25T18:15:08.021000Z","endpoint":"http://127.0.0.1:7700/access/v1/requests"},"approval":{"id":"0190…"},…}}

$ curl -s http://127.0.0.1:7700/access/v1/requests … -H 'Idempotency-Key: 7b8d0f0d' -d '{"subject": {"type": "user", "id": "alice"},
         "action": {"name": "can_read"}, "resource": {"type": "document", "id": "q4-plan"},
         "context": {"business_justification": "the renewal review"},
         "denial": {"evaluation_id": "0190….0190….5f…", "expires_at": "2026-11-25T18:15:08.021000Z"}}'
{"task":{"id":"0190…","status":"pending","status_endpoint":"http://127.0.0.1:7700/access/v1/requests/0190…","expires_at":"2026-11-26T18:15:08.021000Z"}}

$ curl -s http://127.0.0.1:7700/access/v1/requests/0190… …
{"task":{"id":"0190…","status":"approved",…},"result":{"mode":"reevaluate","approval":{"id":"0190…","approved_at":"2026-11-25T18:04:11.301000Z",
 "approved_until":"2026-11-25T18:15:08.021000Z"}}}

$ curl -s http://127.0.0.1:7700/access/v1/evaluation … -d '{…, "context": {"approval": {"id": "0190…"}}}'
{"decision":true,"context":{"reason":"approved","approval":{"id":"0190…","approved_until":"2026-11-25T18:15:08.021000Z"},…}}
```

People are asked by the denial already; the access request says that it is meant, and why. It is on the log before it is answered
(`access.requested`), so any replica takes it and knows of it, also after a restart. The task is the approval: people answer it like any
other, and `GET /v1/approvals/{task}?wait=25` waits for it. Only the agent that asked sees it. Who is the subject cannot approve it.

The request must be about what was denied, to the letter: subject, resource and action with all their properties, the session, and of the
context what the policy's `claims` listed when it was denied. `subject.properties.act` is left out where the policy does not list it. So
must be the evaluation that uses the approval; then the policy in force is asked again, and the approval is taken as `/v1/decide` takes it,
once. One that was opened by `/v1/decide` is not good here, nor the other way round.

| task | is |
|---|---|
| `pending` | nobody has settled it; `Retry-After` says when to look again |
| `approved` | and stays so, also when it was used or not used in time: the evaluation says that |
| `denied` | `display.description` is what the approver said |
| `expired` | nobody answered until the denial's `expires_at` |

A task is kept for a day after that (`expires_at` of the task). None can be cancelled, none is called back (`callback` is 400), several
denials need several requests (`items` is 400), `requested_access` is not looked at, and a `client.actor` that is not the agent itself is
403.

| an evaluation with an approval that is not `true` | `next_action` | `recorded_reason` |
|---|---|---|
| `approval_required` | `retry`: nobody has settled it yet | `approval_required` |
| `approval_expired` | `request`: people are asked anew, `access_request` is the new one | `approval_expired` |
| `approval_used` | `request` | `approval_used` |
| `out_of_scope`: it is for something else, or the policy wants others by now | `request` | `approval_unfit` |
| `approval_denied` | `none` | `approval_denied` |
| `approval_unverifiable`: it is none of yours | `none` | `approval_unfit` |
| `policy_denied` | `retry` while paused, frozen or out of budget, else `none` | why |

An answer that got lost has used its approval: every evaluation is another request. An `Idempotency-Key` is its agent's own, up to 255
characters, and kept as long as its task; without one, the same body again is the same request. One approval takes 16 different requests.
Errors of the profile have its `type`, `urn:openid:authzen:access-request:error:` and one of `not_requestable` (400: the agent, its session
or project is stopped), `invalid_denial_binding` (400), `expired_denial` (410), `duplicate_request` (409), `unknown_task` (404),
`task_expired` (410).

This page is made from `enforcer/banksman/enforcer/openapi.py` (`make docs`).
"""


def enforcer_page() -> str:
    """The whole page: a section a call, then the bodies that they share."""
    spec = document()
    parts = [INTRO]
    shared: dict[str, None] = {}
    for path, calls in spec["paths"].items():
        for method, call in calls.items():
            parts += _call(method, path, call, shared)
    for name in shared:
        model = MODELS[name]
        parts += [f"## {name}\n", inspect.getdoc(model) or "", "", fields_table(model, set()), ""]
    errors = {status: told["description"] for call in _calls(spec) for status, told in call["responses"].items()}
    rows = [f"| {status} | {text} |" for status, text in sorted(errors.items()) if status > "299"]
    return "\n".join([*parts, "## Errors\n", "| status | |", "|---|---|", *rows, ""])


def _calls(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for calls in spec["paths"].values():
        yield from calls.values()


def _call(method: str, path: str, call: dict[str, Any], shared: dict[str, None]) -> list[str]:
    callers = " or ".join(_caller(name, roles) for one in call["security"] for name, roles in one.items())
    parts = [
        f"## {method.upper()} {path}\n",
        f"{call['summary']} {f'Token of {callers}' if callers else 'No token'}.\n",
    ]
    body = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append(f"Body: {_type(body, shared)}.\n")
        if "properties" in body:
            parts += [*_fields(body, shared), ""]
    for status, answer in call["responses"].items():
        ((kind, content),) = answer["content"].items()
        if status.startswith("2"):
            parts.append(f"{status}: {_type(content['schema'], shared)}{'' if 'json' in kind else f', `{kind}`'}.\n")
            parts += _fields(content["schema"], {})
            if "properties" in content["schema"]:
                parts.append("")
    errors = [status for status in call["responses"] if status > "299"]
    return [*parts, f"[Errors](#errors): {' '.join(errors)}.\n"]


def _caller(name: str, roles: list[str]) -> str:
    if name == "agent":
        return "an agent"
    if roles == ["viewer"]:
        return "an operator (any role)"
    return f"an operator ({', '.join(roles)})"


def _fields(schema: dict[str, Any], shared: dict[str, None]) -> list[str]:
    properties = schema.get("properties")
    if not properties:
        return []
    rows = [f"| `{name}` | {_type(one, shared)} |" for name, one in properties.items()]
    return ["| field | type |", "|---|---|", *rows]


def _type(schema: dict[str, Any], shared: dict[str, None]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name == "AgentEvent":
            return "[an event](events.md)"
        shared[name] = None
        return f"[{name}](#{name.lower()})"
    for key in ("oneOf", "anyOf"):
        if key in schema:
            return " or ".join(_type(one, shared) for one in schema[key])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'], shared)}" if "items" in schema else "array"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type", "anything")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
