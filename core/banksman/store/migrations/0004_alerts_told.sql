-- An incident is what findings of one fingerprint say. That it was told (`alert`) and that it was told to be over
-- (`alert.resolved`) are records about it, and no further sightings.
CREATE OR REPLACE VIEW `@database@`.alerts AS
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
    FROM `@database@`.events
    WHERE received >= {since:DateTime64(3)} AND topic = 'alerts' AND verified
    ORDER BY received, partition, offset
    LIMIT 1 BY id, body_hash
)
GROUP BY fingerprint;
