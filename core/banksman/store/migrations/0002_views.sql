-- Views for people: each shows a record once. Rows of the same Kafka coordinates (two archivers after a freeze) are one row;
-- a client's resend (same agent, id and bytes at another offset) is shown once, the verified one first; other bytes under
-- the same id are both shown, both counted, and marked `id_reused`. Replayed history stands in `replay`: views that have this
-- column show it, the others leave it out.
-- Parameterised where a filter has to reach the index: SELECT * FROM session_steps(agent = 'a', session = 's').

-- The story: by time, what belongs to a call behind it. A step stands where its agent's own record says, by the agent's clock;
-- what nobody has signed moves nothing. The scalar subquery bounds the partitions that are read.
CREATE VIEW IF NOT EXISTS `@database@`.session_steps AS
WITH
    (
        SELECT (min(received), max(received))
        FROM `@database@`.events
        WHERE agent = {agent:String} AND session = {session:String} AND topic IN ('actions', 'decisions')
    ) AS span
SELECT
    * EXCEPT (step, anchor, place),
    row_number() OVER
    (
        PARTITION BY replay
        ORDER BY anchor.2, anchor.3, anchor.4, step, place, time, seq, topic, partition, offset
    ) AS n
FROM
(
    SELECT
        *,
        if(call = toUUID('00000000-0000-0000-0000-000000000000'), id, call) AS step,
        min((multiIf(NOT verified, 2, topic = 'actions', 0, 1), time, seq, offset)) OVER (PARTITION BY replay, step) AS anchor,
        multiIf(kind = 'tool.call', 0, kind = 'decision', 1, kind = 'tool.result', 9, 5) AS place,
        uniqExact(body_hash) OVER (PARTITION BY id) > 1 AS id_reused
    FROM
    (
        SELECT *
        FROM `@database@`.events
        WHERE agent = {agent:String} AND session = {session:String} AND topic IN ('actions', 'decisions')
            AND received BETWEEN span.1 AND span.2
        ORDER BY verified DESC, received, topic, partition, offset
        LIMIT 1 BY id, body_hash
    )
)
ORDER BY replay, n;

CREATE VIEW IF NOT EXISTS `@database@`.sessions AS
SELECT
    any(project) AS project,
    agent,
    session,
    replay,
    min(received) AS first_seen,
    max(received) AS last_seen,
    if(countIf(late != 'skew') > 0, minIf(time, late != 'skew'), min(time)) AS started,
    if(countIf(late != 'skew') > 0, maxIf(time, late != 'skew'), max(time)) AS last_time,
    argMaxIf(status, (received, offset), kind = 'session.ended') AS ended,
    countIf(kind IN ('tool.call', 'api.request', 'model.call')) AS actions,
    countIf(kind = 'decision' AND decision = 'allow' AND NOT voided) AS allowed,
    countIf(kind = 'decision' AND decision = 'deny' AND NOT voided) AS denied,
    countIf(kind = 'decision' AND decision = 'approve' AND NOT voided) AS sent_to_approval,
    countIf(voided) AS voided_decisions,
    sum(input_tokens + output_tokens + cache_write_tokens) AS tokens,
    sum(cost_usd) AS cost_usd,
    countIf(priced = 'unpriced') AS unpriced_calls,
    groupUniqArrayIf(policy_version, policy_version != '') AS policy_versions,
    argMaxIf(owner, (received, offset), owner != '') AS owner
FROM
(
    SELECT
        *,
        kind = 'decision' AND (agent, id) IN
        (
            SELECT agent, parent FROM `@database@`.events
            WHERE received >= {since:DateTime64(3)} AND kind = 'decision.void' AND verified
        ) AS voided
    FROM `@database@`.events
    WHERE received >= {since:DateTime64(3)} AND topic IN ('actions', 'decisions') AND verified
    ORDER BY received, topic, partition, offset
    LIMIT 1 BY agent, id, body_hash
)
GROUP BY agent, session, replay;

CREATE VIEW IF NOT EXISTS `@database@`.agents_now AS
SELECT
    agent,
    argMax(project, received) AS project,
    argMax(session, received) AS session,
    max(received) AS last_seen,
    argMax(kind, received) AS last_kind,
    argMaxIf(decision, received, kind = 'decision') AS last_decision,
    argMaxIf(rule, received, kind = 'decision') AS last_rule,
    countIf(received > now64(3) - INTERVAL 1 MINUTE) AS events_last_minute
FROM `@database@`.events
WHERE received >= now64(3) - INTERVAL 1 DAY AND topic IN ('actions', 'decisions') AND verified AND replay = ''
GROUP BY agent;

CREATE VIEW IF NOT EXISTS `@database@`.decisions AS
SELECT *
FROM `@database@`.events
WHERE received >= {since:DateTime64(3)} AND kind = 'decision' AND verified
    AND (agent, id) NOT IN
    (
        SELECT agent, parent FROM `@database@`.events
        WHERE received >= {since:DateTime64(3)} AND kind = 'decision.void' AND verified
    )
ORDER BY received, topic, partition, offset
LIMIT 1 BY agent, id, body_hash;

CREATE VIEW IF NOT EXISTS `@database@`.approvals AS
SELECT
    approval,
    any(project) AS project,
    agent,
    any(session) AS session,
    minIf(received, kind = 'approval.requested') AS requested,
    anyIf(service, kind = 'approval.requested') AS service,
    anyIf(action, kind = 'approval.requested') AS action,
    anyIf(resource, kind = 'approval.requested') AS resource,
    anyIf(branch, kind = 'approval.requested') AS branch,
    anyIf(rule, kind = 'approval.requested') AS rule,
    argMaxIf(kind, received, kind != 'decision') AS state,
    anyIf(approver, approver != '') AS approver
FROM `@database@`.events
WHERE received >= {since:DateTime64(3)} AND topic = 'decisions' AND approval != '' AND verified
GROUP BY agent, approval;

CREATE VIEW IF NOT EXISTS `@database@`.alerts AS
SELECT
    fingerprint,
    argMax(detector, received) AS detector,
    argMax(severity, received) AS severity,
    argMax(title, received) AS title,
    argMax(project, received) AS project,
    argMax(agent, received) AS agent,
    argMax(session, received) AS session,
    argMax(kind, received) AS kind,
    sum(if(JSONHas(raw, 'count'), JSONExtractUInt(raw, 'count'), 1)) AS times,
    min(received) AS first_seen,
    max(received) AS last_seen,
    argMax(raw, received) AS latest
FROM
(
    SELECT *
    FROM `@database@`.events
    WHERE received >= {since:DateTime64(3)} AND topic = 'alerts' AND verified
    ORDER BY received, partition, offset
    LIMIT 1 BY id, body_hash
)
GROUP BY fingerprint;

CREATE VIEW IF NOT EXISTS `@database@`.spend_daily AS
SELECT
    toDate(received, {timezone:String}) AS day,
    project,
    agent,
    model,
    sum(input_tokens + output_tokens + cache_write_tokens) AS tokens,
    sum(cost_usd) AS cost_usd,
    countIf(priced = 'unpriced') AS unpriced_calls,
    count() AS calls
FROM
(
    SELECT *
    FROM `@database@`.events
    WHERE received >= {since:DateTime64(3)} AND kind IN ('model.call', 'tool.result') AND verified AND replay = ''
    ORDER BY topic, partition, offset
    LIMIT 1 BY agent, id, body_hash
)
GROUP BY day, project, agent, model;

CREATE VIEW IF NOT EXISTS `@database@`.permissions_used AS
SELECT
    project,
    agent,
    rule,
    service,
    action,
    decision,
    count() AS times,
    min(received) AS first_used,
    max(received) AS last_used,
    uniqExact(session) AS sessions
FROM
(
    SELECT *
    FROM `@database@`.events
    WHERE received >= {since:DateTime64(3)} AND kind = 'decision' AND verified AND replay = ''
    ORDER BY topic, partition, offset
    LIMIT 1 BY agent, id, body_hash
)
GROUP BY project, agent, rule, service, action, decision;
