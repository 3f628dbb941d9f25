"""Rows for `questions.py`, made by ClickHouse itself through our own schema: 200 agents in 8 projects over 30 days.

An agent's k-th row is row `k * 200 + agent` of all; a session is 100 of its rows: a start, turns of (model call, tool call,
decision, result), an end: 76 of them numbered by its emitter. About 500 bytes a row, of which what cannot be compressed (the
ends of ids, hashes) is random.
"""

from __future__ import annotations

from banksman.store.client import Store

AGENTS = 200
ROWS_A_SESSION = 100
DAYS = 30
CHUNK = 250_000

_INSERT = """
INSERT INTO `{database}`.events
    (received, time, id, kind, project, agent, session, source, seq, call, parent, service, action, resource, branch, args_hash,
     status, outcome_hash, result_size, duration_ms, model, input_tokens, output_tokens, cache_read_tokens, cost_usd, priced,
     decision, tier, rule, policy, policy_version, reason, latency_us, owner, verified, author, topic, partition, offset, raw)
WITH
    number % {agents} AS a, intDiv(number, {agents}) AS k, k % {session} AS step,
    (step - 1) % 4 AS turn,
    multiIf(step = 0, 'session.started', step = {session} - 1, 'session.ended', turn = 0, 'model.call', turn = 1, 'tool.call',
            turn = 2, 'decision', 'tool.result') AS kind_,
    kind_ IN ('tool.call', 'decision') AS operation,
    ['git', 'stripe', 'fs', 'http'] AS services, ['push', 'refunds:create', 'write', 'post'] AS actions,
    toUUID('00000000-0000-0000-0000-000000000000') AS nil,
    x -> lower(hex(toUInt64({first_ms} + x * {step_ms}))) AS moment,
    x -> toUUID(concat(substring(moment(x), 1, 8), '-', substring(moment(x), 9, 4), '-7', substring(hex(sipHash128(x)), 13, 3),
                       '-a', substring(hex(sipHash128(x)), 16, 3), '-', substring(hex(sipHash128(x)), 19, 12))) AS uuid_of,
    concat('hmac-sha256:', lower(hex(sipHash128(number, 'h'))), lower(hex(sipHash128(number, 'i')))) AS hash_,
    fromUnixTimestamp64Milli(toInt64({first_ms} + number * {step_ms})) AS received_,
    uuid_of(number) AS id_, uuid_of(number - {agents} * greatest(turn - 1, 0)) AS call_,
    concat('agent-', leftPad(toString(a), 3, '0')) AS agent_, concat('project-', toString(a % 8)) AS project_,
    concat('s', toString(intDiv(k, {session}))) AS session_
SELECT
    received_, addMicroseconds(toDateTime64(received_, 6, 'UTC'), -(number % 5000)), id_, kind_, project_, agent_, session_,
    if(kind_ = 'decision', concat('enforcer#', toString(a % 3)), concat('emitter-python/1.0#', toString(a))), if(kind_ = 'decision', 0, intDiv(k, {session}) * 76 + step - intDiv(step, 4) + 1),
    if(kind_ IN ('decision', 'tool.result'), call_, nil), if(kind_ = 'tool.result', call_, nil),
    if(operation, services[1 + k % 4], ''), if(operation, actions[1 + k % 4], ''),
    if(operation, concat('acme/repo-', toString(k % 50)), ''), if(operation AND k % 4 = 0, 'feature/a', ''), if(operation, hash_, ''),
    if(kind_ = 'tool.result', if(number % 17 = 0, 'error', 'ok'), if(kind_ = 'session.ended', 'ok', '')),
    if(kind_ = 'tool.result', hash_, ''), if(kind_ = 'tool.result', number % 9000, NULL), if(kind_ = 'tool.result', number % 700, NULL),
    if(kind_ = 'model.call', 'claude-sonnet-4-5', ''), if(kind_ = 'model.call', 1000 + number % 3000, 0), if(kind_ = 'model.call', number % 700, 0), 0,
    if(kind_ = 'model.call', toDecimal64(0.001 + (number % 100) / 10000, 9), NULL), if(kind_ = 'model.call', 'given', ''),
    if(kind_ = 'decision', if(number % 23 = 0, 'deny', 'allow'), ''), if(kind_ = 'decision', 2, 0), if(kind_ = 'decision', concat('allow[', toString(k % 4), ']'), ''),
    if(kind_ = 'decision', project_, ''), if(kind_ = 'decision', concat(project_, '@v3+sha256:0123456789ab'), ''), if(kind_ = 'decision', 'allowed', ''),
    if(kind_ = 'decision', 300 + number % 900, NULL), if(kind_ = 'decision', 'ann@acme.example', ''),
    true, if(kind_ = 'decision', 'service:enforcer', concat('agent:', project_, '/', agent_, '/t1')),
    if(kind_ = 'decision', 'decisions', 'actions'), a % 4, number,
    concat('{{"v":1,"id":"', toString(id_), '","time":"', toString(received_), '","kind":"', kind_, '","project":"', project_, '","agent":"', agent_,
           '","session":"', session_, '","seq":', toString(k + 1), ',"call":"', toString(call_), '","args":{{"path":"/srv/data/', toString(number),
           '","query":"select * from t where id = ', toString(number % 977), '","note":"', repeat('n', 100), '"}},"args_hash":"', hash_, '"}}')
FROM numbers({first}, {count})
"""


def fill(store: Store, rows: int, *, newest_ms: int) -> None:
    """Insert `rows` rows, the newest received at `newest_ms`. About a minute for ten million."""
    step_ms = DAYS * 86_400_000 / rows
    for first in range(0, rows, CHUNK):
        count = min(CHUNK, rows - first)
        store.command(
            _INSERT.format(
                database=store.database, agents=AGENTS, session=ROWS_A_SESSION, first_ms=newest_ms - DAYS * 86_400_000,
                step_ms=step_ms, first=first, count=count,
            )
        )  # fmt: skip
