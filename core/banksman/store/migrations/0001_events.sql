-- The audit log: one row a record, all of it made from the record. Partitions, order and retention go by `received`, Kafka's
-- append time, and only Kafka's coordinates make two rows the same row: nothing that an agent writes can replace, hide or age
-- out a record. "" and zero mean absent; NULL stands where zero would be a lie (a cost that is not known).
CREATE DATABASE IF NOT EXISTS `@database@`;

CREATE TABLE IF NOT EXISTS `@database@`.migrations
(
    number UInt16,
    name String,
    sha256 String,
    at DateTime64(3, 'UTC') DEFAULT now64(3)
) ENGINE = MergeTree ORDER BY number;

CREATE TABLE IF NOT EXISTS `@database@`.events
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
ENGINE = ReplacingMergeTree
PARTITION BY toDate(received)
ORDER BY (agent, received, topic, partition, offset)
TTL toDateTime(received) + INTERVAL @retention_days@ DAY
SETTINGS ttl_only_drop_parts = 1;
