-- The statements that PostgreSQL needs in another form than SQLite; queries.sql has all others, and the descriptions.

-- query: insert_prediction
INSERT INTO predictions ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING RETURNING number;

-- query: index_inputs
INSERT INTO inputs (prediction, body)
SELECT p.number, u.input FROM unindexed_predictions AS u JOIN predictions AS p ON p.id = u.id;

-- query: insert_token
INSERT INTO tokens ({token_columns}) VALUES ({token_values}) ON CONFLICT DO NOTHING;

-- query: insert_model
INSERT INTO models (name, created_at, body) VALUES (:name, :created_at, :body) ON CONFLICT DO NOTHING;

-- query: insert_release
INSERT INTO releases (owner, name, number, body) VALUES (:owner, :name, :number, :body) ON CONFLICT DO NOTHING;

-- query: insert_adapter
INSERT INTO adapters (version, model, body) VALUES (:version, :model, :body)
ON CONFLICT (version, model) DO UPDATE SET body = excluded.body;

-- query: put_build
INSERT INTO builds (id, over, body) VALUES (:id, :over, :body)
ON CONFLICT (id) DO UPDATE SET over = excluded.over, body = excluded.body;

-- query: insert_project
INSERT INTO projects (version, model, body) VALUES (:version, :model, :body)
ON CONFLICT (version, model) DO UPDATE SET body = excluded.body;

-- query: insert_example
INSERT INTO examples (prediction, model) VALUES (:prediction, :model) ON CONFLICT DO NOTHING;

-- query: insert_secret
INSERT INTO secrets (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING;

-- query: insert_erasure
INSERT INTO erasures (account, body) VALUES (:account, :body) ON CONFLICT DO NOTHING;

-- query: usage
SELECT CASE WHEN :by_day = 1 THEN day END, CASE WHEN :by_model = 1 THEN model END,
    CASE WHEN :by_work = 1 THEN work END, CASE WHEN :by_owner = 1 THEN owner END,
    CASE WHEN :by_token = 1 THEN token END, hardware,
    sum(succeeded), sum(failed), sum(canceled), sum(aborted), sum(predict_us), sum(cold_starts), sum(cold_start_us),
    sum(input_tokens), sum(output_tokens)
FROM usage
WHERE day BETWEEN :first AND :last AND (:owner IS NULL OR owner = :owner)
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY 1, 2, 3, 4, 5, 6;

-- query: write_something
INSERT INTO writable (rowid, at) VALUES (1, :at) ON CONFLICT (rowid) DO UPDATE SET at = excluded.at;

-- query: put_footprint
INSERT INTO footprints (loaded, device, model, peak, main, measured_at)
VALUES (:loaded, :device, :model, :peak, :main, :measured_at)
ON CONFLICT (loaded, device) DO UPDATE SET
    model = excluded.model, peak = excluded.peak, main = excluded.main, measured_at = excluded.measured_at;

-- query: audit_before
SELECT body, previous, hash FROM audit
WHERE number < :number
    AND (:who IS NULL OR owner = :who OR token = :who OR address = :who)
    AND (:action IS NULL OR action = :action OR starts_with(action, :action || '.'))
    AND (:object IS NULL OR strpos(object, :object) > 0)
    AND (:since IS NULL OR at >= :since)
    AND (:until IS NULL OR at < :until)
ORDER BY number DESC LIMIT :limit;

-- query: count_predictions_of
SELECT count(*) FILTER (WHERE destination IS NULL), count(*) FILTER (WHERE destination IS NOT NULL)
FROM predictions WHERE owner = :account;

-- query: keep_usage_without_account
INSERT INTO usage
SELECT day, model, work, '', '', hardware, sum(succeeded), sum(failed), sum(canceled), sum(aborted), sum(predict_us),
    sum(cold_starts), sum(cold_start_us), sum(input_tokens), sum(output_tokens)
FROM usage WHERE owner = :account
GROUP BY day, model, work, hardware
ON CONFLICT (day, model, work, owner, token, hardware) DO UPDATE SET
    succeeded = usage.succeeded + excluded.succeeded, failed = usage.failed + excluded.failed,
    canceled = usage.canceled + excluded.canceled, aborted = usage.aborted + excluded.aborted,
    predict_us = usage.predict_us + excluded.predict_us, cold_starts = usage.cold_starts + excluded.cold_starts,
    cold_start_us = usage.cold_start_us + excluded.cold_start_us,
    input_tokens = usage.input_tokens + excluded.input_tokens,
    output_tokens = usage.output_tokens + excluded.output_tokens;
