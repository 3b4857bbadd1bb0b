-- Every statement of the store. A name line starts a query, the comment after it says what it does.

-- query: insert_prediction
-- A new prediction without its input; refused when the id or the stream token exists.
INSERT INTO predictions ({columns}) VALUES ({values});

-- query: insert_unindexed_prediction
-- A new prediction that has ended already, with its input.
INSERT INTO unindexed_predictions ({columns}, predict_us, cold_start_us, input_tokens, output_tokens, input)
VALUES ({marks}, ?, ?, ?, ?, ?);

-- query: index_predictions
-- Copy all unindexed predictions. The triggers runs_are_counted and usage_of_new_is_counted count them.
INSERT INTO predictions ({columns}, predict_us, cold_start_us, input_tokens, output_tokens)
SELECT {columns}, predict_us, cold_start_us, input_tokens, output_tokens
FROM unindexed_predictions ORDER BY number;

-- query: index_inputs
-- The inputs of the predictions copied last.
INSERT INTO inputs (prediction, body)
SELECT p.number, u.input FROM unindexed_predictions AS u CROSS JOIN predictions AS p ON p.id = u.id;

-- query: delete_unindexed_predictions
-- All of them, after they were copied.
DELETE FROM unindexed_predictions;

-- query: insert_input
-- The input of the prediction inserted last.
INSERT INTO inputs (prediction, body) VALUES (:prediction, :body);

-- query: move_prediction
-- Update all mutable columns of a prediction, only if the row has one of the two given statuses and the
-- expected attempt (NULL: any attempt); otherwise no row changes. The trigger events_are_folded deletes the
-- events, and usage_is_counted adds a finished prediction to the usage totals.
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
-- The row number of a prediction whose given attempt is processing. Events of other attempts are not stored.
SELECT number FROM predictions WHERE id = :id AND attempt = :attempt AND status = 'processing';

-- query: insert_event
-- Insert one event. An existing number is ignored: after a reconnect the same event is sent again.
INSERT INTO events (prediction, attempt, n, body) VALUES (:prediction, :attempt, :n, :body)
ON CONFLICT DO NOTHING;

-- query: prediction_by_id
-- One prediction with its input. The table unindexed_predictions has about a hundred rows, at most.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.id = :id
UNION ALL SELECT {columns}, input FROM unindexed_predictions WHERE id = :id;

-- query: prediction_by_stream_token
-- The prediction whose urls.stream carries this token.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.stream_token = :stream_token
UNION ALL SELECT {columns}, input FROM unindexed_predictions WHERE stream_token = :stream_token;

-- query: unfinished_predictions
-- All predictions that are starting or processing, oldest first.
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
-- A page of an owner's predictions older than a cursor, newest first. NULL disables a filter; an unset bound
-- is infinite.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.owner = :owner AND (p.destination IS NOT NULL) = :training
    AND (p.created_at, p.id) < (:place_created_at, :place_id) AND p.created_at >= :created_after
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
    AND (:slower_than IS NULL OR p.completed_at - p.created_at > :slower_than)
ORDER BY p.created_at DESC, p.id DESC
LIMIT :limit;

-- query: predictions_newer
-- The page of an owner's predictions just newer than a cursor, oldest first.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE p.owner = :owner AND (p.destination IS NOT NULL) = :training
    AND (p.created_at, p.id) > (:place_created_at, :place_id) AND p.created_at < :created_before
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
    AND (:slower_than IS NULL OR p.completed_at - p.created_at > :slower_than)
ORDER BY p.created_at, p.id
LIMIT :limit;

-- query: all_predictions_older
-- A page of all owners' predictions older than a cursor, newest first.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE (p.created_at, p.id) < (:place_created_at, :place_id) AND p.created_at >= :created_after
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:owner IS NULL OR p.owner = :owner) AND (:training IS NULL OR (p.destination IS NOT NULL) = :training)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
    AND (:slower_than IS NULL OR p.completed_at - p.created_at > :slower_than)
ORDER BY p.created_at DESC, p.id DESC
LIMIT :limit;

-- query: all_predictions_newer
-- The page of all owners' predictions just newer than a cursor, oldest first.
SELECT {prediction}, i.body
FROM predictions AS p JOIN inputs AS i ON i.prediction = p.number
WHERE (p.created_at, p.id) > (:place_created_at, :place_id) AND p.created_at < :created_before
    AND (:model IS NULL OR p.model = :model) AND (:status IS NULL OR p.status = :status)
    AND (:owner IS NULL OR p.owner = :owner) AND (:training IS NULL OR (p.destination IS NOT NULL) = :training)
    AND (:source IS NULL OR p.source = :source) AND (:parent IS NULL OR p.parent = :parent)
    AND (:token IS NULL OR p.token = :token)
    AND (:slower_than IS NULL OR p.completed_at - p.created_at > :slower_than)
ORDER BY p.created_at, p.id
LIMIT :limit;

-- query: children
-- The ids of the children of a prediction, oldest first.
SELECT id FROM predictions WHERE parent = :parent ORDER BY created_at, id;

-- query: run_counts
-- How many predictions were made with each model.
SELECT model, count FROM run_counts;

-- query: record_version
-- Insert a version, or replace the document of an existing version, which keeps its created_at.
INSERT INTO versions (id, model, created_at, document) VALUES (:id, :model, :created_at, :document)
ON CONFLICT (id, model) DO UPDATE SET document = excluded.document;

-- query: version
-- One version of a model; several models may have a version with the same id.
SELECT id, model, created_at, document FROM versions
WHERE id = :id AND model = :model;

-- query: versions_of_model
-- All versions of a model, newest first.
SELECT id, model, created_at, document FROM versions
WHERE model = :model
ORDER BY created_at DESC, id DESC;

-- query: forget_versions
-- Delete the versions of a model that are neither served nor named by any prediction.
DELETE FROM versions
WHERE model = :model AND id <> :served
    AND NOT EXISTS (SELECT 1 FROM predictions AS p WHERE p.version = versions.id AND p.model = :model);

-- query: insert_token
-- A new token; refused when its id or digest exists.
INSERT INTO tokens ({token_columns}) VALUES ({token_values});

-- query: token_by_digest
-- The token with this digest, unless it is revoked.
SELECT {token_columns} FROM tokens
WHERE digest = :digest AND revoked_at IS NULL;

-- query: token_by_id
-- One token, revoked or not.
SELECT {token_columns} FROM tokens WHERE id = :id;

-- query: all_tokens
-- Every token, oldest first.
SELECT {token_columns} FROM tokens ORDER BY created_at, id;

-- query: revoke_token
-- Revoke a token. A token that is already revoked keeps its revoked_at.
UPDATE tokens SET revoked_at = :revoked_at WHERE id = :id AND revoked_at IS NULL;

-- query: record_token_use
-- Record the last use of a token.
UPDATE tokens SET last_used_at = :last_used_at, last_used_from = :last_used_from WHERE id = :id;

-- query: insert_delivery
-- Insert the pending webhook delivery of a finished prediction.
INSERT INTO deliveries (id, prediction, attempts, due_at, receiver) VALUES (:id, :prediction, 0, :due_at, :receiver);

-- query: due_deliveries
-- Due deliveries, at most :each for each receiver, longest due first.
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
-- The time at which the next delivery is due.
SELECT min(due_at) FROM deliveries WHERE ended_at IS NULL;

-- query: postpone_delivery
-- Record a failed delivery attempt and the time of the next attempt.
UPDATE deliveries SET attempts = :attempts, due_at = :due_at, problem = :problem WHERE id = :id;

-- query: end_delivery
-- End a delivery: delivered (problem NULL) or abandoned because of the problem.
UPDATE deliveries SET ended_at = :now, problem = :problem WHERE id = :id;

-- query: deliveries
-- The finished and pending deliveries of a prediction.
SELECT id, prediction, attempts, due_at, problem, ended_at, receiver FROM deliveries
WHERE prediction = :prediction ORDER BY id;

-- query: webhook_keys
-- The valid keys of an owner, newest first.
SELECT key FROM webhook_keys WHERE owner = :owner AND (expires_at IS NULL OR expires_at > :now)
ORDER BY created_at DESC;

-- query: insert_webhook_key
-- Insert a webhook key.
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
-- Set the expiry of the owner's other keys.
UPDATE webhook_keys SET expires_at = :expires_at WHERE owner = :owner AND key <> :key AND expires_at IS NULL;

-- query: delete_webhook_keys
-- Delete the expired keys of all owners.
DELETE FROM webhook_keys WHERE expires_at <= :now;

-- query: predictions_with_data
-- Predictions that ended before a time and after a position, and whose data is not removed; earliest end first. Not
-- examples, and not those with a webhook that is not delivered yet: its body is made of the data.
SELECT number, id, model, owner, completed_at FROM predictions
WHERE completed_at IS NOT NULL AND data_removed = 0
    AND completed_at < :before AND (completed_at, number) > (:after, :after_number)
    AND NOT EXISTS (SELECT 1 FROM examples WHERE examples.prediction = predictions.id)
    AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.prediction = predictions.id AND ended_at IS NULL)
ORDER BY completed_at, number LIMIT :limit;

-- query: prediction_may_be_emptied
-- Whether the data of a prediction found by `predictions_with_data` may still be removed.
SELECT 1 FROM predictions
WHERE number = :number AND id = :id AND data_removed = 0
    AND NOT EXISTS (SELECT 1 FROM examples WHERE examples.prediction = predictions.id)
    AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.prediction = predictions.id AND ended_at IS NULL);

-- query: prediction_with_data
-- A prediction, if it has ended and its data is not removed.
SELECT number, id FROM predictions WHERE id = :id AND completed_at IS NOT NULL AND data_removed = 0;

-- query: oldest_with_files
-- Predictions with output files that ended before a time, except examples, and the bytes of those files; earliest
-- end first.
SELECT p.number, p.id, sum(f.size) FROM files AS f JOIN predictions AS p ON p.id = f.prediction
WHERE f.prediction IS NOT NULL AND p.completed_at < :before
    AND NOT EXISTS (SELECT 1 FROM examples WHERE examples.prediction = p.id)
GROUP BY p.number ORDER BY p.completed_at LIMIT :limit;

-- query: output_bytes
-- The total bytes of all output files.
SELECT coalesce(sum(size), 0) FROM files WHERE prediction IS NOT NULL;

-- query: remove_data
-- Delete the output and the logs of a prediction; keep the row with its status, error and metrics.
UPDATE predictions SET output = NULL, logs = '', data_removed = 1 WHERE number = :number;

-- query: empty_input
-- Overwrite the input of a prediction whose data is removed.
UPDATE inputs SET body = :body WHERE prediction = :number;

-- query: predictions_of_version
-- Every prediction of one version of one model.
SELECT number, id FROM predictions WHERE version = :id AND model = :model;

-- query: delete_prediction
-- Delete a prediction; the trigger inputs_follow deletes its input.
DELETE FROM predictions WHERE number = :number;

-- query: delete_version
-- Delete a version.
DELETE FROM versions WHERE id = :id AND model = :model;

-- query: insert_file
-- Insert an upload or an output file. An existing row is left unchanged: the same file was reported again.
INSERT INTO files (
    id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path
) VALUES (
    :id, :owner, :name, :content_type, :size, :sha256, :md5, :metadata, :created_at, :expires_at, :prediction, :path
) ON CONFLICT DO NOTHING;

-- query: file
-- One file.
SELECT id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path FROM files
WHERE id = :id;

-- query: unfinished_outputs
-- The output files of unfinished predictions.
SELECT
    f.id, f.owner, f.name, f.content_type, f.size, f.sha256, f.md5, f.metadata, f.created_at, f.expires_at,
    f.prediction, f.path
FROM predictions AS p INDEXED BY predictions_unfinished JOIN files AS f ON f.prediction = p.id
WHERE p.status IN ('starting', 'processing');

-- query: uploads
-- A page of an owner's uploads older than a cursor, newest first.
SELECT id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path FROM files
WHERE owner = :owner AND prediction IS NULL AND (created_at, id) < (:place_created_at, :place_id)
ORDER BY created_at DESC, id DESC LIMIT :limit;

-- query: expired_uploads
-- Uploads that have expired.
SELECT id, owner, name, content_type, size, sha256, md5, metadata, created_at, expires_at, prediction, path FROM files
WHERE expires_at <= :now LIMIT :limit;

-- query: uploaded_bytes
-- The total bytes of all uploads.
SELECT coalesce(sum(size), 0) FROM files WHERE prediction IS NULL;

-- query: file_paths
-- The paths of all files.
SELECT path FROM files;

-- query: unfinished_ids
-- The ids of all predictions that are starting or processing.
SELECT id FROM predictions INDEXED BY predictions_unfinished WHERE status IN ('starting', 'processing');

-- query: output_paths
-- The paths of the output files of predictions, without those of trainings, and the ids of the predictions.
SELECT path, prediction FROM files
WHERE prediction IS NOT NULL
    AND prediction NOT IN (
        SELECT id FROM predictions WHERE destination IS NOT NULL
        UNION ALL SELECT id FROM unindexed_predictions WHERE destination IS NOT NULL
    );

-- query: delete_file
-- Delete one file.
DELETE FROM files WHERE id = :id;

-- query: delete_files_of_prediction
-- Delete the output files of a prediction.
DELETE FROM files WHERE prediction = :id;

-- query: insert_model
-- Insert a model created through the API; fails if its name exists.
INSERT INTO models (name, created_at, body) VALUES (:name, :created_at, :body);

-- query: update_model
-- Replace the stored description of a model.
UPDATE models SET body = :body WHERE name = :name;

-- query: delete_model
-- Delete a model.
DELETE FROM models WHERE name = :name;

-- query: all_models
-- All models created through the API, oldest first.
SELECT body FROM models ORDER BY created_at, name;

-- query: insert_adapter
-- Insert or replace a version that a training created.
INSERT OR REPLACE INTO adapters (version, model, body) VALUES (:version, :model, :body);

-- query: all_adapters
-- All versions created by trainings, oldest first.
SELECT body FROM adapters ORDER BY rowid;

-- query: delete_adapter
-- Delete a version that a training created.
DELETE FROM adapters WHERE version = :id AND model = :model;

-- query: put_build
-- Insert or replace the state of the build of a pushed project.
INSERT OR REPLACE INTO builds (id, over, body) VALUES (:id, :over, :body);

-- query: build
-- The state of one build.
SELECT body FROM builds WHERE id = :id;

-- query: unfinished_builds
-- The states of all unfinished builds.
SELECT body FROM builds WHERE over = 0;

-- query: insert_project
-- Insert or replace a pushed version.
INSERT OR REPLACE INTO projects (version, model, body) VALUES (:version, :model, :body);

-- query: all_projects
-- All pushed versions, oldest first.
SELECT body FROM projects ORDER BY rowid;

-- query: delete_project
-- Delete a pushed version.
DELETE FROM projects WHERE version = :id AND model = :model;

-- query: insert_release
-- Insert a release of a deployment; the first release creates the deployment. Fails if the number exists.
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
-- Delete all releases of a deployment, and so the deployment.
DELETE FROM releases WHERE owner = :owner AND name = :name;

-- query: last_use_of_deployment
-- The time of the newest prediction of a deployment.
SELECT max(created_at) FROM predictions WHERE deployment = :deployment;

-- query: insert_example
-- Add a prediction to the examples of its model.
INSERT OR IGNORE INTO examples (prediction, model) VALUES (:prediction, :model);

-- query: delete_example
-- Remove a prediction from the examples of its model.
DELETE FROM examples WHERE prediction = :prediction AND model = :model;

-- query: all_examples
-- The example predictions of all models, in the order in which they were added.
SELECT model, prediction FROM examples ORDER BY rowid;

-- query: secret
-- The value of a secret that this appliance generated.
SELECT value FROM secrets WHERE name = :name;

-- query: insert_secret
-- Insert a secret, unless one of that name exists.
INSERT OR IGNORE INTO secrets (name, value) VALUES (:name, :value);

-- query: usage
-- Usage in a range of days, grouped by hardware and by the requested keys.
SELECT iif(:by_day, day, NULL), iif(:by_model, model, NULL), iif(:by_work, work, NULL), iif(:by_owner, owner, NULL),
    iif(:by_token, token, NULL), hardware,
    sum(succeeded), sum(failed), sum(canceled), sum(aborted), sum(predict_us), sum(cold_starts), sum(cold_start_us),
    sum(input_tokens), sum(output_tokens)
FROM usage
WHERE day BETWEEN :first AND :last AND (:owner IS NULL OR owner = :owner)
GROUP BY 1, 2, 3, 4, 5, 6;

-- query: write_something
-- Overwrite one row, to test that the database is writable.
INSERT OR REPLACE INTO writable (rowid, at) VALUES (1, :at);

-- query: put_footprint
-- Insert or replace the measured memory of a model on a device.
INSERT OR REPLACE INTO footprints (loaded, device, model, peak, main, measured_at)
VALUES (:loaded, :device, :model, :peak, :main, :measured_at);

-- query: all_footprints
-- The measured memory of all models.
SELECT loaded, device, model, peak, main, measured_at FROM footprints;

-- query: conversations
-- All conversations of an account without their messages, the last changed first.
SELECT id, owner, title, model, created_at, updated_at, revision FROM conversations
WHERE owner = :owner
ORDER BY updated_at DESC, id DESC;

-- query: conversation
-- One conversation of an account.
SELECT id, owner, title, model, created_at, updated_at, revision, body FROM conversations
WHERE id = :id AND owner = :owner;

-- query: conversation_revision
-- The revision of a conversation.
SELECT revision FROM conversations WHERE id = :id AND owner = :owner;

-- query: other_conversations
-- The number and the bytes of an account's other conversations.
SELECT count(*), coalesce(sum(size), 0) FROM conversations WHERE owner = :owner AND id <> :id;

-- query: insert_conversation
-- A new conversation; fails if its id exists.
INSERT INTO conversations (id, owner, title, model, created_at, updated_at, revision, size, body)
VALUES (:id, :owner, :title, :model, :created_at, :updated_at, :revision, :size, :body);

-- query: update_conversation
-- Replace a conversation.
UPDATE conversations
SET title = :title, model = :model, updated_at = :updated_at, revision = :revision, size = :size, body = :body
WHERE id = :id AND owner = :owner;

-- query: delete_conversation
-- Delete a conversation.
DELETE FROM conversations WHERE id = :id AND owner = :owner;

-- query: old_conversations
-- Conversations that were last changed before a time and after a position; earliest change first.
SELECT rowid, id, model, owner, updated_at FROM conversations
WHERE updated_at < :before AND (updated_at, rowid) > (:after, :after_number)
ORDER BY updated_at, rowid LIMIT :limit;

-- query: delete_unchanged_conversation
-- Delete a conversation, unless it has changed.
DELETE FROM conversations WHERE id = :id AND updated_at = :updated_at;

-- query: audit_end
-- The newest record of the audit log.
SELECT number, hash FROM audit WHERE number > 0 ORDER BY number DESC LIMIT 1;

-- query: insert_audit
-- A new record of the audit log.
INSERT INTO audit (number, body, previous, hash) VALUES (:number, :body, :previous, :hash);

-- query: audit_hash
-- The hash of one record.
SELECT hash FROM audit WHERE number = :number;

-- query: audit_position
-- A position in the chain.
SELECT number, hash FROM audit_positions WHERE name = :name;

-- query: put_audit_position
-- Set a position in the chain.
INSERT INTO audit_positions (name, number, hash) VALUES (:name, :number, :hash)
ON CONFLICT (name) DO UPDATE SET number = excluded.number, hash = excluded.hash;

-- query: audit_after
-- Records after a number, oldest first.
SELECT body, previous, hash FROM audit WHERE number > :number ORDER BY number LIMIT :limit;

-- query: audit_rows
-- All records, in order, to verify them.
SELECT number, body, previous, hash FROM audit WHERE number > 0 ORDER BY number;

-- query: audit_before
-- Records before a number that match all filters, newest first. `who` is an account, a token or an address.
SELECT body, previous, hash FROM audit
WHERE number < :number
    AND (:who IS NULL OR owner = :who OR token = :who OR json_extract(body, '$.address') = :who)
    AND (:action IS NULL OR action = :action OR action GLOB :action || '.*')
    AND (:object IS NULL OR instr(object, :object) > 0)
    AND (:since IS NULL OR at >= :since)
    AND (:until IS NULL OR at < :until)
ORDER BY number DESC LIMIT :limit;

-- query: audit_first_since
-- The number of the oldest record since a time.
SELECT number FROM audit WHERE number > 0 AND at >= :since ORDER BY number LIMIT 1;

-- query: audit_last_before
-- The newest record before a number.
SELECT number, hash FROM audit WHERE number < :number ORDER BY number DESC LIMIT 1;

-- query: delete_audit
-- Delete records up to a number.
DELETE FROM audit WHERE number <= :number;

-- query: insert_user
-- A new user; fails if the account has one.
INSERT INTO users ({user_columns}) VALUES ({user_values});

-- query: user
-- The user of an account.
SELECT {user_columns} FROM users WHERE name = :name;

-- query: user_by_subject
-- The user whom a provider knows by this id.
SELECT {user_columns} FROM users WHERE issuer = :issuer AND subject = :subject;

-- query: users
-- All users.
SELECT {user_columns} FROM users ORDER BY name;

-- query: set_password
-- Replace the password of a user; a user of a provider has none.
UPDATE users SET password = :password WHERE name = :name AND password IS NOT NULL;

-- query: replace_password_hash
-- Replace the hash of a password, unless it was replaced meanwhile.
UPDATE users SET password = :new WHERE name = :name AND password = :old;

-- query: record_sign_in
-- Store the time of a user's last sign-in, and the values of the groups claim.
UPDATE users SET last_sign_in_at = :last_sign_in_at, groups_claim = :groups_claim WHERE name = :name;

-- query: delete_user
-- Remove a user.
DELETE FROM users WHERE name = :name;

-- query: insert_session
-- A new session.
INSERT INTO sessions ({session_columns}) VALUES ({session_values});

-- query: session_by_digest
-- The session whose secret has this digest.
SELECT {session_columns} FROM sessions WHERE digest = :digest;

-- query: session_by_id
-- A session.
SELECT {session_columns} FROM sessions WHERE id = :id;

-- query: active_sessions
-- The sessions of all users that have not ended, newest first.
SELECT {session_columns} FROM sessions
WHERE ended_at IS NULL AND expires_at > :now
ORDER BY created_at DESC;

-- query: active_sessions_of_user
-- The sessions of a user that have not ended, newest first.
SELECT {session_columns} FROM sessions
WHERE "user" = :user AND ended_at IS NULL AND expires_at > :now
ORDER BY created_at DESC;

-- query: end_session
-- End a session of a user, or of any user.
UPDATE sessions SET ended_at = :now
WHERE id = :id AND (:user IS NULL OR "user" = :user) AND ended_at IS NULL AND expires_at > :now;

-- query: end_sessions
-- End all sessions of a user.
UPDATE sessions SET ended_at = :now WHERE "user" = :user AND ended_at IS NULL AND expires_at > :now;

-- query: record_session_use
-- When and from which address a session was used last.
UPDATE sessions SET last_used_at = :last_used_at, last_used_from = :last_used_from WHERE id = :id;

-- query: delete_old_sessions
-- Delete the sessions that expired before a time.
DELETE FROM sessions WHERE expires_at < :before;

-- query: delete_sessions_of_user
-- Delete all sessions of a user.
DELETE FROM sessions WHERE "user" = :user;

-- query: insert_erasure
-- Begin to erase the data of an account, unless that has begun already.
INSERT OR IGNORE INTO erasures (account, body) VALUES (:account, :body);

-- query: erasures
-- The erasures that have not ended, or the one of an account.
SELECT body FROM erasures WHERE :account IS NULL OR account = :account;

-- query: update_erasure
-- Store what an erasure has erased so far.
UPDATE erasures SET body = :body WHERE account = :account;

-- query: delete_erasure
-- The erasure has ended.
DELETE FROM erasures WHERE account = :account;

-- query: revoke_tokens_of
-- Revoke the tokens of an account.
UPDATE tokens SET revoked_at = :now WHERE owner = :account AND revoked_at IS NULL;

-- query: credential_ids_of
-- The ids of the tokens and sessions of an account.
SELECT id FROM tokens WHERE owner = :account UNION ALL SELECT id FROM sessions WHERE "user" = :account;

-- query: count_predictions_of
-- The numbers of predictions and of trainings of an account.
SELECT coalesce(sum(destination IS NULL), 0), coalesce(sum(destination IS NOT NULL), 0)
FROM predictions WHERE owner = :account;

-- query: count_uploads_of
-- The number and the bytes of an account's uploads.
SELECT count(*), coalesce(sum(size), 0) FROM files WHERE owner = :account AND prediction IS NULL;

-- query: count_outputs_of
-- The number and the bytes of an account's output files.
SELECT count(*), coalesce(sum(size), 0) FROM files WHERE owner = :account AND prediction IS NOT NULL;

-- query: count_conversations_of
-- The number of an account's conversations.
SELECT count(*) FROM conversations WHERE owner = :account;

-- query: count_deployments_of
-- The number of an account's deployments.
SELECT count(DISTINCT name) FROM releases WHERE owner = :account;

-- query: count_examples_of
-- The number of an account's predictions that are examples.
SELECT count(*) FROM examples AS e JOIN predictions AS p ON p.id = e.prediction WHERE p.owner = :account;

-- query: count_tokens_of
-- The number of an account's tokens.
SELECT count(*) FROM tokens WHERE owner = :account;

-- query: count_sessions_of
-- The number of sessions of an account's user, also of ended ones.
SELECT count(*) FROM sessions WHERE "user" = :account;

-- query: count_users_of
-- 1 if the account has a user, else 0.
SELECT count(*) FROM users WHERE name = :account;

-- query: count_webhook_keys_of
-- The number of an account's webhook keys.
SELECT count(*) FROM webhook_keys WHERE owner = :account;

-- query: count_usage_of
-- The number of rows of usage that name an account.
SELECT count(*) FROM usage WHERE owner = :account;

-- query: builds_of_all
-- The states of all builds.
SELECT id, body FROM builds;

-- query: owner_of_prediction
-- The owner of a prediction.
SELECT owner FROM predictions WHERE id = :id;

-- query: ended_predictions_of
-- Some ended predictions of an account.
SELECT number, id, destination IS NOT NULL FROM predictions
WHERE owner = :account AND status NOT IN ('starting', 'processing') LIMIT :limit;

-- query: delete_example_of
-- Remove a prediction from all examples.
DELETE FROM examples WHERE prediction = :id;

-- query: uploads_of
-- Some uploads of an account.
SELECT id, path, size FROM files WHERE owner = :account AND prediction IS NULL LIMIT :limit;

-- query: outputs_of_prediction
-- The number and the bytes of the output files of a prediction.
SELECT count(*), coalesce(sum(size), 0) FROM files WHERE prediction = :id;

-- query: delete_files_of
-- Delete the rows of an account's files whose predictions are deleted.
DELETE FROM files WHERE owner = :account AND prediction IS NOT NULL;

-- query: delete_conversations_of
-- Delete the conversations of an account.
DELETE FROM conversations WHERE owner = :account;

-- query: delete_releases_of
-- Delete the deployments of an account.
DELETE FROM releases WHERE owner = :account;

-- query: delete_build
-- Delete the record of a build.
DELETE FROM builds WHERE id = :id;

-- query: delete_tokens_of
-- Delete the tokens of an account.
DELETE FROM tokens WHERE owner = :account;

-- query: delete_sessions_of
-- Delete the sessions of an account's user.
DELETE FROM sessions WHERE "user" = :account;

-- query: delete_user_of
-- Delete the user of an account.
DELETE FROM users WHERE name = :account;

-- query: delete_webhook_keys_of
-- Delete the webhook keys of an account.
DELETE FROM webhook_keys WHERE owner = :account;

-- query: keep_usage_without_account
-- Add the usage of an account to the usage without an account and a token, so that all sums stay the same.
INSERT INTO usage
SELECT day, model, work, '', '', hardware, sum(succeeded), sum(failed), sum(canceled), sum(aborted), sum(predict_us),
    sum(cold_starts), sum(cold_start_us), sum(input_tokens), sum(output_tokens)
FROM usage WHERE owner = :account
GROUP BY day, model, work, hardware
ON CONFLICT DO UPDATE SET
    succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
    canceled = canceled + excluded.canceled, aborted = aborted + excluded.aborted,
    predict_us = predict_us + excluded.predict_us, cold_starts = cold_starts + excluded.cold_starts,
    cold_start_us = cold_start_us + excluded.cold_start_us,
    input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens;

-- query: delete_usage_of
-- Delete the usage of an account, after it was added to the usage without an account.
DELETE FROM usage WHERE owner = :account;

-- query: begin_object
-- Record that the upload of an object begins, unless its deletion is not finished yet.
INSERT INTO bucket_objects (path, state) SELECT :path, 'uploading' WHERE
    EXISTS (SELECT 1 FROM files WHERE path = :path AND id = :id)
    OR EXISTS (SELECT 1 FROM adapters WHERE version = :id)
ON CONFLICT (path) DO NOTHING;

-- query: object_state
-- The state of an object.
SELECT state FROM bucket_objects WHERE path = :path;

-- query: complete_object
-- Record that an object is complete, unless it is to be deleted.
UPDATE bucket_objects SET state = 'stored' WHERE path = :path AND state = 'uploading';

-- query: add_stored_object
-- Record in a backup copy of the database that an object is complete.
INSERT INTO bucket_objects (path, state) VALUES (:path, 'stored')
ON CONFLICT (path) DO UPDATE SET state = 'stored';

-- query: objects_to_delete
-- The next objects to delete, in order of their paths, after the path :after.
SELECT path FROM bucket_objects WHERE state = 'deleting' AND path > :after ORDER BY path LIMIT :limit;

-- query: forget_object
-- Forget an object that was deleted.
DELETE FROM bucket_objects WHERE path = :path AND state = 'deleting';

-- query: all_objects
-- The paths and states of all objects.
SELECT path, state FROM bucket_objects;

-- query: objects_below
-- The paths and states of the objects of a trained version.
SELECT path, state FROM bucket_objects WHERE path >= :first AND path < :last;

-- query: count_objects
-- The number of objects in each state.
SELECT state, count(*) FROM bucket_objects GROUP BY state;

-- query: file_with_path
-- 1 if a file has the path :path; :id is the id of the file or of its prediction.
SELECT 1 FROM files WHERE (id = :id OR prediction = :id) AND path = :path;

-- query: file_ids
-- The paths and ids of all files.
SELECT path, id FROM files;
