CREATE DATABASE IF NOT EXISTS `banksman` ON CLUSTER `audit`;

CREATE TABLE IF NOT EXISTS `banksman`.migrations ON CLUSTER `audit`
(
    number UInt16,
    name String,
    sha256 String,
    at DateTime64(3, 'UTC') DEFAULT now64(3)
) ENGINE = ReplicatedMergeTree('/clickhouse/tables/banksman/migrations', '{shard}-{replica}') ORDER BY number;

CREATE TABLE IF NOT EXISTS `banksman`.events_local ON CLUSTER `audit`
(
    received DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    time DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    id UUID,
    kind LowCardinality(String),
    project LowCardinality(String),
    agent LowCardinality(String),
    session String CODEC(ZSTD(1)),
    source LowCardinality(String),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    call UUID,
    parent UUID,

    service LowCardinality(String),
    action LowCardinality(String),
    resource String CODEC(ZSTD(1)),
    branch String CODEC(ZSTD(1)),
    args_hash String CODEC(ZSTD(1)),

    status LowCardinality(String),
    error String CODEC(ZSTD(1)),
    result_hash String CODEC(ZSTD(1)),
    outcome_hash String CODEC(ZSTD(1)),
    result_size Nullable(UInt64),
    duration_ms Nullable(Float64),

    model LowCardinality(String),
    input_tokens UInt64 CODEC(T64, ZSTD(1)),
    output_tokens UInt64 CODEC(T64, ZSTD(1)),
    cache_read_tokens UInt64 CODEC(T64, ZSTD(1)),
    cache_write_tokens UInt64 CODEC(T64, ZSTD(1)),
    cost_usd Nullable(Decimal(18, 9)),
    priced LowCardinality(String) COMMENT 'given, table DATE, unpriced',

    decision LowCardinality(String),
    tier UInt8,
    rule LowCardinality(String),
    policy LowCardinality(String),
    policy_version LowCardinality(String),
    reason LowCardinality(String),
    approval String CODEC(ZSTD(1)),
    approver LowCardinality(String),
    shadow LowCardinality(String),
    latency_us Nullable(UInt64),
    owner LowCardinality(String),

    operator LowCardinality(String) COMMENT 'who asked for a control, or was enrolled',
    detector LowCardinality(String),
    severity LowCardinality(String),
    title String CODEC(ZSTD(1)),
    fingerprint String CODEC(ZSTD(1)),

    verified Bool,
    author LowCardinality(String) COMMENT 'whose signature fits; empty: nobody we know',
    replay LowCardinality(String) COMMENT 'the run that this belongs to; empty: live',
    late LowCardinality(String) COMMENT 'late: sent long after it happened; skew: the clock is wrong',
    topic LowCardinality(String),
    partition UInt16,
    offset UInt64 CODEC(Delta, ZSTD(1)),
    raw String CODEC(ZSTD(3)) COMMENT 'the record as it was written',
    body_hash UInt128 DEFAULT reinterpretAsUInt128(SHA256(raw)) COMMENT 'tells resent records from reused ids; nobody finds two texts with one',

    INDEX ix_session session TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX ix_id id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX ix_topic topic TYPE set(8) GRANULARITY 1,
    INDEX ix_offset offset TYPE minmax GRANULARITY 1
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/banksman/events', '{replica}')
PARTITION BY toDate(received)
ORDER BY (agent, received, topic, partition, offset)
TTL toDateTime(received) + INTERVAL 365 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS `banksman`.events ON CLUSTER `audit` AS `banksman`.events_local
ENGINE = Distributed('audit', 'banksman', 'events_local', partition);

CREATE VIEW IF NOT EXISTS `banksman`.session_steps ON CLUSTER `audit` AS
WITH
    (
        SELECT (min(received), max(received))
        FROM `banksman`.events
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
        FROM `banksman`.events
        WHERE agent = {agent:String} AND session = {session:String} AND topic IN ('actions', 'decisions')
            AND received BETWEEN span.1 AND span.2
        ORDER BY verified DESC, received, topic, partition, offset
        LIMIT 1 BY id, body_hash
    )
)
ORDER BY replay, n;

CREATE VIEW IF NOT EXISTS `banksman`.sessions ON CLUSTER `audit` AS
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
        kind = 'decision' AND (agent, id) GLOBAL IN
        (
            SELECT agent, parent FROM `banksman`.events
            WHERE received >= {since:DateTime64(3)} AND kind = 'decision.void' AND verified
        ) AS voided
    FROM `banksman`.events
    WHERE received >= {since:DateTime64(3)} AND topic IN ('actions', 'decisions') AND verified
    ORDER BY received, topic, partition, offset
    LIMIT 1 BY agent, id, body_hash
)
GROUP BY agent, session, replay;

CREATE VIEW IF NOT EXISTS `banksman`.agents_now ON CLUSTER `audit` AS
SELECT
    agent,
    argMax(project, received) AS project,
    argMax(session, received) AS session,
    max(received) AS last_seen,
    argMax(kind, received) AS last_kind,
    argMaxIf(decision, received, kind = 'decision') AS last_decision,
    argMaxIf(rule, received, kind = 'decision') AS last_rule,
    countIf(received > now64(3) - INTERVAL 1 MINUTE) AS events_last_minute
FROM `banksman`.events
WHERE received >= now64(3) - INTERVAL 1 DAY AND topic IN ('actions', 'decisions') AND verified AND replay = ''
GROUP BY agent;

CREATE VIEW IF NOT EXISTS `banksman`.decisions ON CLUSTER `audit` AS
SELECT *
FROM `banksman`.events
WHERE received >= {since:DateTime64(3)} AND kind = 'decision' AND verified
    AND (agent, id) GLOBAL NOT IN
    (
        SELECT agent, parent FROM `banksman`.events
        WHERE received >= {since:DateTime64(3)} AND kind = 'decision.void' AND verified
    )
ORDER BY received, topic, partition, offset
LIMIT 1 BY agent, id, body_hash;

CREATE VIEW IF NOT EXISTS `banksman`.approvals ON CLUSTER `audit` AS
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
FROM `banksman`.events
WHERE received >= {since:DateTime64(3)} AND topic = 'decisions' AND approval != '' AND verified
GROUP BY agent, approval;

CREATE VIEW IF NOT EXISTS `banksman`.alerts ON CLUSTER `audit` AS
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
    FROM `banksman`.events
    WHERE received >= {since:DateTime64(3)} AND topic = 'alerts' AND verified
    ORDER BY received, partition, offset
    LIMIT 1 BY id, body_hash
)
GROUP BY fingerprint;

CREATE VIEW IF NOT EXISTS `banksman`.spend_daily ON CLUSTER `audit` AS
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
    FROM `banksman`.events
    WHERE received >= {since:DateTime64(3)} AND kind IN ('model.call', 'tool.result') AND verified AND replay = ''
    ORDER BY topic, partition, offset
    LIMIT 1 BY agent, id, body_hash
)
GROUP BY day, project, agent, model;

CREATE VIEW IF NOT EXISTS `banksman`.permissions_used ON CLUSTER `audit` AS
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
    FROM `banksman`.events
    WHERE received >= {since:DateTime64(3)} AND kind = 'decision' AND verified AND replay = ''
    ORDER BY topic, partition, offset
    LIMIT 1 BY agent, id, body_hash
)
GROUP BY project, agent, rule, service, action, decision;

ALTER TABLE `banksman`.events_local ON CLUSTER `audit` MODIFY SETTING min_bytes_for_wide_part = 67108864;

CREATE OR REPLACE VIEW `banksman`.alerts ON CLUSTER `audit` AS
SELECT
    fingerprint,
    argMax(detector, received) AS detector,
    argMaxIf(severity, received, what = 'finding') AS severity,
    argMaxIf(title, received, what = 'finding') AS title,
    argMax(project, received) AS project,
    argMax(agent, received) AS agent,
    argMax(session, received) AS session,
    argMax(kind, received) AS kind,
    sumIf(
        if(JSONHas(raw, 'count'), JSONExtractUInt(raw, 'count'), 1), what = 'finding' AND NOT JSONExtractBool(raw, 'over')
    ) AS times,
    countIf(what = 'alert') AS told,
    argMax(what = 'alert.resolved' OR JSONExtractBool(raw, 'over'), received) AS over,
    min(received) AS first_seen,
    max(received) AS last_seen,
    argMax(raw, received) AS latest
FROM
(
    SELECT *, kind AS what
    FROM `banksman`.events
    WHERE received >= {since:DateTime64(3)} AND topic = 'alerts' AND verified
    ORDER BY received, partition, offset
    LIMIT 1 BY id, body_hash
)
GROUP BY fingerprint;

ALTER TABLE `banksman`.events_local ON CLUSTER `audit` ADD COLUMN IF NOT EXISTS subject String COMMENT 'TYPE:ID; empty: the agent itself' AFTER owner;

ALTER TABLE `banksman`.events ON CLUSTER `audit` ADD COLUMN IF NOT EXISTS subject String COMMENT 'TYPE:ID; empty: the agent itself' AFTER owner;

CREATE OR REPLACE VIEW `banksman`.decisions ON CLUSTER `audit` AS
SELECT *
FROM `banksman`.events
WHERE received >= {since:DateTime64(3)} AND kind = 'decision' AND verified
    AND (agent, id) GLOBAL NOT IN
    (
        SELECT agent, parent FROM `banksman`.events
        WHERE received >= {since:DateTime64(3)} AND kind = 'decision.void' AND verified
    )
ORDER BY received, topic, partition, offset
LIMIT 1 BY agent, id, body_hash;

CREATE OR REPLACE VIEW `banksman`.approvals ON CLUSTER `audit` AS
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
    anyIf(subject, kind = 'approval.requested') AS subject,
    anyIf(rule, kind = 'approval.requested') AS rule,
    argMaxIf(kind, received, kind != 'decision') AS state,
    anyIf(approver, approver != '') AS approver
FROM `banksman`.events
WHERE received >= {since:DateTime64(3)} AND topic = 'decisions' AND approval != '' AND verified
GROUP BY agent, approval;
