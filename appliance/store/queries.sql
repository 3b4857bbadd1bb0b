-- Every statement of the store. A name line starts a query, the comment after it says what it does.

-- query: insert_prediction
-- A new prediction without its input; refused when the id or the stream token exists.
INSERT INTO predictions ({columns}) VALUES ({values});

-- query: insert_input
-- The input of the prediction inserted last.
INSERT INTO inputs (prediction, body) VALUES (:prediction, :body);

-- query: move_prediction
-- Everything about a prediction that can change, written only if its status is one of two and its attempt the
-- expected one (NULL: any); no row moves otherwise. The trigger events_are_folded deletes the events,
-- and usage_is_counted counts what is over.
UPDATE predictions SET
    status = :status, started_at = :started_at, completed_at = :completed_at, attempt = :attempt, n = :n,
    data_removed = :data_removed, error = :error, logs = :logs, output = :output, metrics = :metrics,
    hardware = :hardware, predict_us = :predict_us, cold_start_us = :cold_start_us, input_tokens = :input_tokens,
    output_tokens = :output_tokens
WHERE id = :id AND status IN (:from_status, :or_from_status) AND attempt = coalesce(:from_attempt, attempt);

-- query: status_and_attempt
-- Status and attempt of one prediction, for the message of a conflict.
SELECT status, attempt FROM predictions WHERE id = :id;

-- query: running
-- The number of a prediction if this attempt of it is under way: only then are events taken.
SELECT number FROM predictions WHERE id = :id AND attempt = :attempt AND status = 'processing';

-- query: insert_event
-- One event; a number that is there already is the same event sent again after a re-attachment.
INSERT INTO events (prediction, attempt, n, body) VALUES (:prediction, :attempt, :n, :body)
ON CONFLICT DO NOTHING;

-- query: prediction_by_id
-- One prediction with its input.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.id = :id;

-- query: prediction_by_stream_token
-- The prediction whose urls.stream carries this token.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.stream_token = :stream_token;

-- query: unfinished_predictions
-- All that are neither finished nor given up, oldest first.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.status IN ('starting', 'processing')
ORDER BY p.created_at, p.id;

-- query: events_of_attempt
-- The stored events of one attempt in their order.
SELECT e.n, e.body
FROM predictions AS p JOIN events AS e ON e.prediction = p.number
WHERE p.id = :id AND e.attempt = :attempt
ORDER BY e.n;

-- query: predictions_older
-- A page of an owner's predictions below a place, newest first. An unset filter is NULL, an unset bound an infinity.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.owner = :owner AND (p.destination IS NOT NULL) = :training
    AND (p.created_at, p.id) < (:place_created_at, :place_id) AND p.created_at >= :created_after
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
ORDER BY p.created_at DESC, p.id DESC
LIMIT :limit;

-- query: predictions_newer
-- The page of predictions just above a place, oldest first.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.owner = :owner AND (p.destination IS NOT NULL) = :training
    AND (p.created_at, p.id) > (:place_created_at, :place_id) AND p.created_at < :created_before
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
ORDER BY p.created_at, p.id
LIMIT :limit;

-- query: all_predictions_older
-- A page of everyone's predictions, newest first. Every column but those that are shown is in one index.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE (p.created_at, p.id) < (:place_created_at, :place_id) AND p.created_at >= :created_after
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:owner IS NULL OR p.owner = :owner) AND (:training IS NULL OR (p.destination IS NOT NULL) = :training)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
ORDER BY p.created_at DESC, p.id DESC
LIMIT :limit;

-- query: all_predictions_newer
-- The page of everyone's predictions just above a place, oldest first.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE (p.created_at, p.id) > (:place_created_at, :place_id) AND p.created_at < :created_before
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:owner IS NULL OR p.owner = :owner) AND (:training IS NULL OR (p.destination IS NOT NULL) = :training)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
ORDER BY p.created_at, p.id
LIMIT :limit;

-- query: parts
-- The ids of what a prediction has asked for, in that order.
SELECT id FROM predictions WHERE parent = :parent ORDER BY created_at, id;

-- query: run_counts
-- How many predictions were made with each model.
SELECT model, count FROM run_counts;

-- query: record_version
-- A version and its document; one seen before keeps the time it was first seen.
INSERT INTO versions (id, model, created_at, document) VALUES (:id, :model, :created_at, :document)
ON CONFLICT (id, model) DO UPDATE SET document = excluded.document;

-- query: version
-- One version, of the named model or (NULL) of the model that had it first.
SELECT id, model, created_at, document FROM versions
WHERE id = :id AND (:model IS NULL OR model = :model)
ORDER BY created_at LIMIT 1;

-- query: versions_of_model
-- All versions of a model, newest first.
SELECT id, model, created_at, document FROM versions
WHERE model = :model
ORDER BY created_at DESC, id DESC;

-- query: forget_versions
-- Versions of a model that are neither served nor named by any prediction.
DELETE FROM versions
WHERE model = :model AND id <> :served
    AND NOT EXISTS (SELECT 1 FROM predictions AS p WHERE p.version = versions.id AND p.model = :model);

-- query: insert_token
-- A new token; refused when its id or digest exists.
INSERT INTO tokens (id, name, owner, digest, created_at, revoked_at, scope)
VALUES (:id, :name, :owner, :digest, :created_at, :revoked_at, :scope);

-- query: token_by_digest
-- The token with this digest, unless it is revoked.
SELECT id, name, owner, digest, created_at, revoked_at, scope FROM tokens
WHERE digest = :digest AND revoked_at IS NULL;

-- query: token_by_id
-- One token, revoked or not.
SELECT id, name, owner, digest, created_at, revoked_at, scope FROM tokens WHERE id = :id;

-- query: all_tokens
-- Every token, oldest first.
SELECT id, name, owner, digest, created_at, revoked_at, scope FROM tokens ORDER BY created_at, id;

-- query: revoke_token
-- Revoke a token; one revoked before keeps its time.
UPDATE tokens SET revoked_at = :revoked_at WHERE id = :id AND revoked_at IS NULL;

-- query: insert_delivery
-- What is to be delivered of a prediction that is finished.
INSERT INTO deliveries (id, prediction, attempts, due_at, receiver) VALUES (:id, :prediction, 0, :due_at, :receiver);

-- query: due_deliveries
-- Due deliveries, at most so many for each receiver, longest due first.
WITH RECURSIVE receivers (receiver) AS (
    SELECT min(receiver) FROM deliveries WHERE ended_at IS NULL
    UNION ALL
    SELECT (SELECT min(receiver) FROM deliveries WHERE ended_at IS NULL AND receiver > r.receiver)
    FROM receivers AS r WHERE r.receiver IS NOT NULL
)
SELECT id, prediction, attempts, due_at, problem, ended_at, receiver FROM deliveries
WHERE id IN (
    SELECT due.id FROM receivers AS r JOIN deliveries AS due ON due.id IN (
        SELECT id FROM deliveries WHERE ended_at IS NULL AND receiver = r.receiver AND due_at <= :now
        ORDER BY due_at LIMIT :each
    )
)
ORDER BY due_at;

-- query: next_delivery
-- When something is due next.
SELECT min(due_at) FROM deliveries WHERE ended_at IS NULL;

-- query: postpone_delivery
-- A delivery that has failed is due again later.
UPDATE deliveries SET attempts = :attempts, due_at = :due_at, problem = :problem WHERE id = :id;

-- query: end_delivery
-- It is delivered, or given up, which leaves the problem.
UPDATE deliveries SET ended_at = :now, problem = :problem WHERE id = :id;

-- query: deliveries
-- What was, or is to be, delivered of a prediction.
SELECT id, prediction, attempts, due_at, problem, ended_at, receiver FROM deliveries
WHERE prediction = :prediction ORDER BY id;

-- query: webhook_keys
-- The valid keys of an owner, newest first.
SELECT key FROM webhook_keys WHERE owner = :owner AND (expires_at IS NULL OR expires_at > :now)
ORDER BY created_at DESC;

-- query: insert_webhook_key
-- A new key.
INSERT INTO webhook_keys (key, owner, created_at) VALUES (:key, :owner, :now);

-- query: insert_first_webhook_key
-- A key for an owner that has none.
INSERT INTO webhook_keys (key, owner, created_at)
SELECT :key, :owner, :now
WHERE NOT EXISTS (SELECT 1 FROM webhook_keys WHERE owner = :owner AND (expires_at IS NULL OR expires_at > :now));

-- query: claim_webhook_keys
-- Give this owner the keys of versions that had one key for all owners.
UPDATE webhook_keys SET owner = :owner WHERE owner = '';

-- query: expire_webhook_keys
-- Set an end for the owner's other keys.
UPDATE webhook_keys SET expires_at = :expires_at WHERE owner = :owner AND key <> :key AND expires_at IS NULL;

-- query: delete_webhook_keys
-- Keys that have expired are of no use to anyone.
DELETE FROM webhook_keys WHERE expires_at <= :now;

-- query: predictions_with_data
-- Some of the predictions that ended long enough ago and still hold data.
SELECT number, id FROM predictions
WHERE completed_at IS NOT NULL AND data_removed = 0 AND completed_at < :before
    AND NOT EXISTS (SELECT 1 FROM examples WHERE examples.prediction = predictions.id)
ORDER BY completed_at LIMIT :limit;

-- query: oldest_with_files
-- The predictions that made files and ended first, with what those take.
SELECT p.number, p.id, sum(f.size) FROM files AS f JOIN predictions AS p ON p.id = f.prediction
WHERE f.prediction IS NOT NULL AND p.completed_at IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM examples WHERE examples.prediction = p.id)
GROUP BY p.number ORDER BY p.completed_at LIMIT :limit;

-- query: output_bytes
-- What all files that predictions made take.
SELECT coalesce(sum(size), 0) FROM files WHERE prediction IS NOT NULL;

-- query: remove_data
-- What a prediction was given, gave and wrote goes; that it was, how it ended and what it cost stays.
UPDATE predictions SET output = NULL, logs = '', data_removed = 1 WHERE number = :number;

-- query: empty_input
-- The input of a prediction whose data is removed.
UPDATE inputs SET body = :body WHERE prediction = :number;

-- query: predictions_of_version
-- Every prediction of one version of one model.
SELECT number, id FROM predictions WHERE version = :id AND model = :model;

-- query: delete_prediction
-- A prediction whose data was removed goes altogether; its input is deleted by the trigger inputs_follow.
DELETE FROM predictions WHERE number = :number;

-- query: delete_version
-- A version is no more.
DELETE FROM versions WHERE id = :id AND model = :model;

-- query: insert_file
-- An upload, or a file that a prediction made; one that is known already is the same one told again.
INSERT INTO files (
    id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path
) VALUES (
    :id, :owner, :name, :content_type, :size, :sha256, :md5, :metadata, :created_at, :expires_at, :prediction, :path
) ON CONFLICT DO NOTHING;

-- query: file
-- One file.
SELECT id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path FROM files
WHERE id = :id;

-- query: uploads
-- A page of an owner's uploads below a place, newest first.
SELECT id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path FROM files
WHERE owner = :owner AND prediction IS NULL AND (created_at, id) < (:place_created_at, :place_id)
ORDER BY created_at DESC, id DESC LIMIT :limit;

-- query: expired_uploads
-- Uploads whose time is over.
SELECT id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path FROM files
WHERE expires_at <= :now LIMIT :limit;

-- query: uploaded_bytes
-- What all uploads take.
SELECT coalesce(sum(size), 0) FROM files WHERE prediction IS NULL;

-- query: file_paths
-- Where every file is.
SELECT path FROM files;

-- query: delete_file
-- A file is no more.
DELETE FROM files WHERE id = :id;

-- query: delete_files_of_prediction
-- The files that a prediction made are no more.
DELETE FROM files WHERE prediction = :id;

-- query: insert_model
-- A model that was made through the API; refused when its name exists.
INSERT INTO models (name, created_at, body) VALUES (:name, :created_at, :body);

-- query: update_model
-- The same model with other words about it.
UPDATE models SET body = :body WHERE name = :name;

-- query: delete_model
-- A model is no more.
DELETE FROM models WHERE name = :name;

-- query: all_models
-- Every model that was made through the API.
SELECT body FROM models ORDER BY created_at, name;

-- query: insert_adapter
-- A version that a training made.
INSERT OR REPLACE INTO adapters (version, model, body) VALUES (:version, :model, :body);

-- query: all_adapters
-- Every version that a training made, oldest first.
SELECT body FROM adapters ORDER BY rowid;

-- query: delete_adapter
-- A version that a training made is no more.
DELETE FROM adapters WHERE version = :id AND model = :model;

-- query: put_build
-- A project that was pushed, as far as it has come.
INSERT OR REPLACE INTO builds (id, over, body) VALUES (:id, :over, :body);

-- query: build
-- One of them.
SELECT body FROM builds WHERE id = :id;

-- query: unfinished_builds
-- Those that are not over.
SELECT body FROM builds WHERE over = 0;

-- query: insert_project
-- A version that was pushed.
INSERT OR REPLACE INTO projects (version, model, body) VALUES (:version, :model, :body);

-- query: all_projects
-- Every version that was pushed, oldest first.
SELECT body FROM projects ORDER BY rowid;

-- query: delete_project
-- A version that was pushed is no more.
DELETE FROM projects WHERE version = :id AND model = :model;

-- query: insert_release
-- A release of a deployment; its first one makes the deployment. Refused when the number exists.
INSERT INTO releases (owner, name, number, body) VALUES (:owner, :name, :number, :body);

-- query: deployments
-- The newest release of every deployment, or of one owner's, newest first.
SELECT body FROM releases AS r
WHERE (:owner IS NULL OR owner = :owner)
    AND number = (SELECT max(number) FROM releases WHERE owner = r.owner AND name = r.name)
ORDER BY rowid DESC;

-- query: deployment
-- The newest release of one deployment.
SELECT body FROM releases WHERE owner = :owner AND name = :name ORDER BY number DESC LIMIT 1;

-- query: delete_deployment
-- A deployment is no more, with all its releases.
DELETE FROM releases WHERE owner = :owner AND name = :name;

-- query: last_use_of_deployment
-- When a deployment was last asked for something.
SELECT max(created_at) FROM predictions WHERE deployment = :deployment;

-- query: insert_example
-- A prediction shows what its model can do.
INSERT OR IGNORE INTO examples (prediction, model) VALUES (:prediction, :model);

-- query: delete_example
-- It does not any more.
DELETE FROM examples WHERE prediction = :prediction AND model = :model;

-- query: all_examples
-- The predictions that show what models can do, oldest choice first.
SELECT model, prediction FROM examples ORDER BY rowid;

-- query: secret
-- A key that this appliance made for itself.
SELECT value FROM secrets WHERE name = :name;

-- query: insert_secret
-- The same, made once.
INSERT OR IGNORE INTO secrets (name, value) VALUES (:name, :value);

-- query: usage
-- What was used in some days, told apart by what is asked for, and by hardware.
SELECT iif(:by_day, day, NULL), iif(:by_model, model, NULL), iif(:by_work, work, NULL), iif(:by_owner, owner, NULL),
    iif(:by_token, token, NULL), hardware,
    sum(succeeded), sum(failed), sum(canceled), sum(aborted), sum(predict_us), sum(cold_starts), sum(cold_start_us),
    sum(input_tokens), sum(output_tokens)
FROM usage
WHERE day BETWEEN :first AND :last AND (:owner IS NULL OR owner = :owner)
GROUP BY 1, 2, 3, 4, 5, 6;

-- query: write_something
-- The same row is written again: whether that works is all that is asked.
INSERT OR REPLACE INTO writable (rowid, at) VALUES (1, :at);

-- query: put_footprint
-- What a model was found to take.
INSERT OR REPLACE INTO footprints (loaded, device, model, peak, main, measured_at)
VALUES (:loaded, :device, :model, :peak, :main, :measured_at);

-- query: all_footprints
-- What all models were found to take.
SELECT loaded, device, model, peak, main, measured_at FROM footprints;
