-- Whom a decision is about, where a gateway asks about somebody else than itself (AuthZEN): a question of its own for auditors.
-- A record from before this column has it in `raw` alone.
ALTER TABLE `@database@`.events ADD COLUMN IF NOT EXISTS subject String COMMENT 'TYPE:ID; empty: the agent itself' AFTER owner;

CREATE OR REPLACE VIEW `@database@`.decisions AS
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

CREATE OR REPLACE VIEW `@database@`.approvals AS
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
FROM `@database@`.events
WHERE received >= {since:DateTime64(3)} AND topic = 'decisions' AND approval != '' AND verified
GROUP BY agent, approval;
