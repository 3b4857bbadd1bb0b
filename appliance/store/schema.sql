-- The tables, in numbered steps. A database remembers in PRAGMA user_version how many it has had.
-- A step that has been released is never edited: append the next number instead.

-- step: 1
-- Predictions and their events, versions, tokens, counters.

-- Mutable state of each prediction. SQLite rewrites a whole row when it changes, so the input, which never
-- changes and may be megabytes, lies apart. Blobs are msgpack; text in output or metrics is JSON, used only for
-- integers that msgpack cannot hold. NULL in output and metrics stands for None and {}.
CREATE TABLE predictions (
    number       INTEGER PRIMARY KEY,
    id           TEXT NOT NULL UNIQUE,
    model        TEXT NOT NULL,
    version      TEXT NOT NULL,
    owner        TEXT NOT NULL,
    status       TEXT NOT NULL,
    source       TEXT NOT NULL,
    created_at   REAL NOT NULL,
    started_at   REAL,
    completed_at REAL,
    deadline     REAL,
    stream_token TEXT NOT NULL UNIQUE,
    attempt      INTEGER NOT NULL,
    n            INTEGER NOT NULL,
    data_removed INTEGER NOT NULL,
    error        TEXT,
    logs         TEXT NOT NULL,
    output       BLOB,
    metrics      BLOB
);

-- The list, newest first. Model and status are in it so that their filters need not visit the rows.
CREATE INDEX predictions_by_time ON predictions (owner, created_at, id, model, status);

-- The few that are not finished; recovery must not scan a year of history.
CREATE INDEX predictions_unfinished ON predictions (created_at, id) WHERE status IN ('starting', 'processing');

CREATE TABLE inputs (
    prediction INTEGER PRIMARY KEY REFERENCES predictions (number),
    body       BLOB NOT NULL
);

-- Events of running attempts that the prediction's row does not hold yet.
CREATE TABLE events (
    prediction INTEGER NOT NULL REFERENCES predictions (number),
    attempt    INTEGER NOT NULL,
    n          INTEGER NOT NULL,
    body       BLOB NOT NULL,
    PRIMARY KEY (prediction, attempt, n)
) WITHOUT ROWID;

-- Leaving `processing` writes the whole record, so its events go in the same statement.
CREATE TRIGGER events_are_folded AFTER UPDATE OF status ON predictions
WHEN OLD.status = 'processing'
BEGIN
    DELETE FROM events WHERE prediction = OLD.number;
END;

-- How often each model was asked. A counter of its own, so that it survives the removal of records.
CREATE TABLE run_counts (
    model TEXT PRIMARY KEY,
    count INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER runs_are_counted AFTER INSERT ON predictions
BEGIN
    INSERT INTO run_counts (model, count) VALUES (NEW.model, 1)
    ON CONFLICT (model) DO UPDATE SET count = count + 1;
END;

-- Two models may be served in the same version (same weights and options), so the id alone is not unique.
CREATE TABLE versions (
    id         TEXT NOT NULL,
    model      TEXT NOT NULL,
    created_at REAL NOT NULL,
    document   BLOB NOT NULL,
    PRIMARY KEY (id, model)
) WITHOUT ROWID;

CREATE INDEX versions_by_model ON versions (model, created_at, id);

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    owner      TEXT NOT NULL,
    digest     BLOB NOT NULL UNIQUE,
    created_at REAL NOT NULL,
    revoked_at REAL
) WITHOUT ROWID;

-- step: 2
-- Webhooks.

-- Where a prediction's events are sent, as msgpack; it never changes.
ALTER TABLE predictions ADD COLUMN webhook BLOB;

-- The last event of a prediction, from the moment it is finished until it is delivered or given up. The body is
-- made of the prediction when it is sent: a finished one does not change.
CREATE TABLE deliveries (
    id         TEXT PRIMARY KEY,
    prediction TEXT NOT NULL,
    attempts   INTEGER NOT NULL,
    due_at     REAL NOT NULL
) WITHOUT ROWID;

CREATE INDEX deliveries_by_time ON deliveries (due_at);

-- The keys that sign what is sent; an older one is used beside the newest until it expires.
CREATE TABLE webhook_keys (
    key        TEXT PRIMARY KEY,
    created_at REAL NOT NULL,
    expires_at REAL
) WITHOUT ROWID;

-- step: 3
-- What tokens may do. Those of before could do everything.
ALTER TABLE tokens ADD COLUMN scope TEXT NOT NULL DEFAULT 'admin';

-- step: 4
-- Retention.

-- What may have its data removed, oldest end first.
CREATE INDEX predictions_with_data ON predictions (completed_at) WHERE completed_at IS NOT NULL AND data_removed = 0;

-- step: 5
-- Files, deployments, trainings, and what is made through the API.

-- The deployment that a prediction was made through, and, of a training, the model that gets its result.
ALTER TABLE predictions ADD COLUMN deployment TEXT;
ALTER TABLE predictions ADD COLUMN destination TEXT;

-- Lists are of predictions or of trainings, never of both.
DROP INDEX predictions_by_time;
CREATE INDEX predictions_by_time
ON predictions (owner, (destination IS NOT NULL), created_at, id, model, status);
CREATE INDEX predictions_by_version ON predictions (version);
CREATE INDEX predictions_by_deployment ON predictions (deployment, created_at) WHERE deployment IS NOT NULL;

CREATE TRIGGER inputs_follow BEFORE DELETE ON predictions
BEGIN
    DELETE FROM inputs WHERE prediction = OLD.number;
    DELETE FROM events WHERE prediction = OLD.number;
END;

-- Uploads (prediction is NULL) and files that predictions made. The bytes are on the disk: `path` is relative to
-- the folder of files. The id of an output is part of its address, and as long as a secret.
CREATE TABLE files (
    id           TEXT PRIMARY KEY,
    owner        TEXT NOT NULL,
    name         TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size         INTEGER NOT NULL,
    sha256       TEXT NOT NULL,
    md5          TEXT NOT NULL,
    metadata     BLOB NOT NULL,
    created_at   REAL NOT NULL,
    expires_at   REAL,
    prediction   TEXT,
    path         TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX files_by_time ON files (owner, created_at, id) WHERE prediction IS NULL;
CREATE INDEX files_by_prediction ON files (prediction) WHERE prediction IS NOT NULL;
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

-- The bodies are msgpack.
CREATE TABLE models (
    name       TEXT PRIMARY KEY,
    created_at REAL NOT NULL,
    body       BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE adapters (
    version TEXT NOT NULL,
    model   TEXT NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (version, model)
);

CREATE TABLE releases (
    owner  TEXT NOT NULL,
    name   TEXT NOT NULL,
    number INTEGER NOT NULL,
    body   BLOB NOT NULL,
    PRIMARY KEY (owner, name, number)
);

CREATE TABLE examples (
    prediction TEXT PRIMARY KEY,
    model      TEXT NOT NULL
);

-- Keys that the appliance made for itself.
CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- step: 6
-- Pipelines and projects.

-- The prediction that asked for this one while it ran.
ALTER TABLE predictions ADD COLUMN parent TEXT;

CREATE INDEX predictions_by_parent ON predictions (parent, created_at, id) WHERE parent IS NOT NULL;

-- Projects that were pushed: on their way, and the versions that they became. The bodies are msgpack.
CREATE TABLE builds (
    id   TEXT PRIMARY KEY,
    over INTEGER NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;

CREATE INDEX builds_under_way ON builds (id) WHERE over = 0;

CREATE TABLE projects (
    version TEXT NOT NULL,
    model   TEXT NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (version, model)
);

-- step: 7
-- Predictions that were asked for in the words of another API.

ALTER TABLE predictions ADD COLUMN operation TEXT;

-- step: 8
-- Usage.

-- The token that made a prediction (of a part: the one that made the whole), the SKU of what it last ran on, and
-- the W3C trace context that it belongs to.
ALTER TABLE predictions ADD COLUMN token TEXT;
ALTER TABLE predictions ADD COLUMN hardware TEXT;
ALTER TABLE predictions ADD COLUMN trace TEXT;

-- What it took, once it is over: microseconds, and tokens. Only usage_is_counted reads them.
ALTER TABLE predictions ADD COLUMN predict_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE predictions ADD COLUMN cold_start_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE predictions ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE predictions ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;

-- What predictions took, added up by the statements that store their ends; it outlives them. Times are
-- microseconds, days are UTC. '' is what is not known, or not there.
CREATE TABLE usage (
    day           TEXT NOT NULL,
    model         TEXT NOT NULL,
    work          TEXT NOT NULL,
    owner         TEXT NOT NULL,
    token         TEXT NOT NULL,
    hardware      TEXT NOT NULL,
    succeeded     INTEGER NOT NULL,
    failed        INTEGER NOT NULL,
    canceled      INTEGER NOT NULL,
    aborted       INTEGER NOT NULL,
    predict_us    INTEGER NOT NULL,
    cold_starts   INTEGER NOT NULL,
    cold_start_us INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, model, work, owner, token, hardware)
) WITHOUT ROWID;

-- Those that ended before there was this table. metric_us and metric_count are functions of ours.
INSERT INTO usage
SELECT strftime('%Y-%m-%d', CAST(completed_at AS INTEGER), 'unixepoch'), model,
    iif(destination IS NULL, 'prediction', 'training'), owner, '', '',
    sum(status = 'succeeded'), sum(status = 'failed'), sum(status = 'canceled'), sum(status = 'aborted'),
    sum(metric_us(metrics, 'predict_time')),
    sum(metric_us(metrics, 'cold_start') > 0), sum(metric_us(metrics, 'cold_start')),
    sum(metric_count(metrics, 'input_token_count')), sum(metric_count(metrics, 'output_token_count'))
FROM predictions WHERE completed_at IS NOT NULL
GROUP BY 1, 2, 3, 4;

-- A trigger, because each further statement costs the writer a wait for the interpreter.
CREATE TRIGGER usage_is_counted AFTER UPDATE OF status ON predictions
WHEN NEW.status IN ('succeeded', 'failed', 'canceled', 'aborted')
BEGIN
    INSERT INTO usage VALUES (
        strftime('%Y-%m-%d', CAST(coalesce(NEW.completed_at, NEW.created_at) AS INTEGER), 'unixepoch'), NEW.model,
        iif(NEW.destination IS NULL, 'prediction', 'training'), NEW.owner, coalesce(NEW.token, ''),
        coalesce(NEW.hardware, ''), NEW.status = 'succeeded', NEW.status = 'failed', NEW.status = 'canceled',
        NEW.status = 'aborted', NEW.predict_us, NEW.cold_start_us > 0, NEW.cold_start_us, NEW.input_tokens,
        NEW.output_tokens
    ) ON CONFLICT DO UPDATE SET
        succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
        canceled = canceled + excluded.canceled, aborted = aborted + excluded.aborted,
        predict_us = predict_us + excluded.predict_us, cold_starts = cold_starts + excluded.cold_starts,
        cold_start_us = cold_start_us + excluded.cold_start_us,
        input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens;
END;

-- What /readyz writes to see that writing works.
CREATE TABLE writable (
    at REAL NOT NULL
);

-- step: 10
-- What operators look at.

-- Everyone's predictions, newest first, with what they are filtered by.
CREATE INDEX predictions_by_creation ON predictions (created_at, id, owner, model, status, token);

-- A delivery that is over stays, to be shown with its prediction.
ALTER TABLE deliveries ADD COLUMN problem TEXT;
ALTER TABLE deliveries ADD COLUMN ended_at REAL;
DROP INDEX deliveries_by_time;
CREATE INDEX deliveries_by_time ON deliveries (due_at) WHERE ended_at IS NULL;
CREATE INDEX deliveries_by_prediction ON deliveries (prediction);

CREATE TRIGGER deliveries_follow BEFORE DELETE ON predictions
BEGIN
    DELETE FROM deliveries WHERE prediction = OLD.id;
END;

-- step: 9
-- What models were found to take of the machine.

-- `loaded` is a digest of version, kind and options; sizes are bytes, `peak` on each of its devices.
CREATE TABLE footprints (
    loaded      TEXT NOT NULL,
    device      TEXT NOT NULL,
    model       TEXT NOT NULL,
    peak        INTEGER NOT NULL,
    main        INTEGER NOT NULL,
    measured_at REAL NOT NULL,
    PRIMARY KEY (loaded, device)
) WITHOUT ROWID;

-- step: 11
-- Webhooks are fair, and each account has a key of its own.

-- The owner and the host of the URL, with a space between them; no host where it was not known yet.
ALTER TABLE deliveries ADD COLUMN receiver TEXT NOT NULL DEFAULT ' ';
UPDATE deliveries SET receiver = (SELECT owner FROM predictions WHERE id = deliveries.prediction) || ' '
WHERE ended_at IS NULL AND EXISTS (SELECT 1 FROM predictions WHERE id = deliveries.prediction);
CREATE INDEX deliveries_by_receiver ON deliveries (receiver, due_at) WHERE ended_at IS NULL;

-- Keys of before have no owner until the account of models.yaml is known: it keeps them.
ALTER TABLE webhook_keys ADD COLUMN owner TEXT NOT NULL DEFAULT '';

-- step: 12
-- Lists that are narrowed to few or no predictions look at no others.

CREATE INDEX predictions_by_token ON predictions (token, created_at, id) WHERE token IS NOT NULL;
CREATE INDEX predictions_by_model ON predictions (model, created_at, id);
CREATE INDEX predictions_by_owner ON predictions (owner, created_at, id);
CREATE INDEX predictions_by_owner_and_model ON predictions (owner, model, created_at, id);

-- These are few.
CREATE INDEX predictions_by_source ON predictions (source, created_at, id) WHERE source <> 'api';
CREATE INDEX trainings_by_creation ON predictions (created_at, id) WHERE destination IS NOT NULL;
CREATE INDEX predictions_by_end ON predictions (status, created_at, id)
WHERE status IN ('failed', 'canceled', 'aborted');
CREATE INDEX predictions_by_owner_and_end ON predictions (owner, status, created_at, id)
WHERE status IN ('failed', 'canceled', 'aborted');

-- step: 13
-- Short predictions are stored in one statement, after their end.

CREATE TRIGGER usage_of_new_is_counted AFTER INSERT ON predictions
WHEN NEW.status IN ('succeeded', 'failed', 'canceled', 'aborted')
BEGIN
    INSERT INTO usage VALUES (
        strftime('%Y-%m-%d', CAST(coalesce(NEW.completed_at, NEW.created_at) AS INTEGER), 'unixepoch'), NEW.model,
        iif(NEW.destination IS NULL, 'prediction', 'training'), NEW.owner, coalesce(NEW.token, ''),
        coalesce(NEW.hardware, ''), NEW.status = 'succeeded', NEW.status = 'failed', NEW.status = 'canceled',
        NEW.status = 'aborted', NEW.predict_us, NEW.cold_start_us > 0, NEW.cold_start_us, NEW.input_tokens,
        NEW.output_tokens
    ) ON CONFLICT DO UPDATE SET
        succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
        canceled = canceled + excluded.canceled, aborted = aborted + excluded.aborted,
        predict_us = predict_us + excluded.predict_us, cold_starts = cold_starts + excluded.cold_starts,
        cold_start_us = cold_start_us + excluded.cold_start_us,
        input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens;
END;

-- step: 14
-- Short predictions are inserted into a table without an index, and moved to the indexed table together.

-- The columns of predictions and the input. Searches by id and by stream token read these columns only.
CREATE TABLE unindexed_predictions (
    number        INTEGER PRIMARY KEY,
    id            TEXT NOT NULL,
    stream_token  TEXT NOT NULL,
    model         TEXT NOT NULL,
    version       TEXT NOT NULL,
    owner         TEXT NOT NULL,
    status        TEXT NOT NULL,
    source        TEXT NOT NULL,
    created_at    REAL NOT NULL,
    started_at    REAL,
    completed_at  REAL,
    deadline      REAL,
    attempt       INTEGER NOT NULL,
    n             INTEGER NOT NULL,
    data_removed  INTEGER NOT NULL,
    error         TEXT,
    deployment    TEXT,
    destination   TEXT,
    parent        TEXT,
    operation     TEXT,
    token         TEXT,
    hardware      TEXT,
    trace         TEXT,
    predict_us    INTEGER NOT NULL,
    cold_start_us INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    metrics       BLOB,
    webhook       BLOB,
    logs          TEXT NOT NULL,
    output        BLOB,
    input         BLOB NOT NULL
);

-- step: 15
-- Deleted predictions stay in the usage and in the run counts. An import of such a prediction must not add it there again.

CREATE TABLE deleted_predictions (
    id TEXT PRIMARY KEY
) WITHOUT ROWID;

CREATE TRIGGER deletions_are_recorded AFTER DELETE ON predictions
BEGIN
    INSERT OR IGNORE INTO deleted_predictions (id) VALUES (OLD.id);
END;

DROP TRIGGER runs_are_counted;
CREATE TRIGGER runs_are_counted AFTER INSERT ON predictions
WHEN NOT EXISTS (SELECT 1 FROM deleted_predictions WHERE id = NEW.id)
BEGIN
    INSERT INTO run_counts (model, count) VALUES (NEW.model, 1)
    ON CONFLICT (model) DO UPDATE SET count = count + 1;
END;

DROP TRIGGER usage_of_new_is_counted;
CREATE TRIGGER usage_of_new_is_counted AFTER INSERT ON predictions
WHEN NEW.status IN ('succeeded', 'failed', 'canceled', 'aborted')
    AND NOT EXISTS (SELECT 1 FROM deleted_predictions WHERE id = NEW.id)
BEGIN
    INSERT INTO usage VALUES (
        strftime('%Y-%m-%d', CAST(coalesce(NEW.completed_at, NEW.created_at) AS INTEGER), 'unixepoch'), NEW.model,
        iif(NEW.destination IS NULL, 'prediction', 'training'), NEW.owner, coalesce(NEW.token, ''),
        coalesce(NEW.hardware, ''), NEW.status = 'succeeded', NEW.status = 'failed', NEW.status = 'canceled',
        NEW.status = 'aborted', NEW.predict_us, NEW.cold_start_us > 0, NEW.cold_start_us, NEW.input_tokens,
        NEW.output_tokens
    ) ON CONFLICT DO UPDATE SET
        succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
        canceled = canceled + excluded.canceled, aborted = aborted + excluded.aborted,
        predict_us = predict_us + excluded.predict_us, cold_starts = cold_starts + excluded.cold_starts,
        cold_start_us = cold_start_us + excluded.cold_start_us,
        input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens;
END;

-- step: 16
-- Conversations of the chat page.

-- `size` is the length of the body, which is msgpack.
CREATE TABLE conversations (
    id         TEXT PRIMARY KEY,
    owner      TEXT NOT NULL,
    title      TEXT NOT NULL,
    model      TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    revision   INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    body       BLOB NOT NULL
);

-- The list reads no bodies, so the index has all of its columns.
CREATE INDEX conversations_by_owner
ON conversations (owner, updated_at, id, title, model, created_at, revision, size);
CREATE INDEX conversations_by_change ON conversations (updated_at);

-- step: 17
-- The audit log.

-- The body is canonical JSON. The hash is made of the previous hash and the body, so both are stored as text.
CREATE TABLE audit (
    number   INTEGER PRIMARY KEY,
    body     TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash     TEXT NOT NULL,
    at       TEXT GENERATED ALWAYS AS (json_extract(body, '$.at')) VIRTUAL,
    action   TEXT GENERATED ALWAYS AS (json_extract(body, '$.action')) VIRTUAL,
    object   TEXT GENERATED ALWAYS AS (json_extract(body, '$.object')) VIRTUAL,
    owner    TEXT GENERATED ALWAYS AS (json_extract(body, '$.owner')) VIRTUAL,
    token    TEXT GENERATED ALWAYS AS (json_extract(body, '$.token')) VIRTUAL
);

-- Positions in the chain: `deleted` is the last record that was deleted because of its age, `shipped_file` and
-- `shipped_syslog` the last ones that were sent there.
CREATE TABLE audit_positions (
    name   TEXT PRIMARY KEY,
    number INTEGER NOT NULL,
    hash   TEXT NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'records of the audit log cannot be changed');
END;

CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
WHEN OLD.number > coalesce((SELECT number FROM audit_positions WHERE name = 'deleted'), 0)
BEGIN
    SELECT RAISE(ABORT, 'records of the audit log cannot be deleted before their retention ends');
END;

-- step: 18
-- Limits of tokens, and their last use. `networks` and `models` are separated by spaces; NULL means no limit.
ALTER TABLE tokens ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN expires_at REAL;
ALTER TABLE tokens ADD COLUMN networks TEXT;
ALTER TABLE tokens ADD COLUMN models TEXT;
ALTER TABLE tokens ADD COLUMN last_used_at REAL;
ALTER TABLE tokens ADD COLUMN last_used_from TEXT;

-- step: 19
-- People who sign in to the UI, and their sessions.

-- `password` is an Argon2 hash. A person without one signs in at the provider `issuer`, which knows the person as
-- `subject`. `groups_claim` is a JSON array: the values of the groups claim at the last sign-in.
CREATE TABLE users (
    name            TEXT PRIMARY KEY,
    scope           TEXT NOT NULL,
    created_at      REAL NOT NULL,
    password        TEXT,
    issuer          TEXT,
    subject         TEXT,
    groups_claim    TEXT NOT NULL,
    last_sign_in_at REAL,
    UNIQUE (issuer, subject)
);

CREATE TABLE sessions (
    id             TEXT PRIMARY KEY,
    user           TEXT NOT NULL,
    digest         TEXT NOT NULL UNIQUE,
    created_at     REAL NOT NULL,
    expires_at     REAL NOT NULL,
    ended_at       REAL,
    address        TEXT NOT NULL,
    browser        TEXT NOT NULL,
    last_used_at   REAL,
    last_used_from TEXT
);

CREATE INDEX sessions_by_user ON sessions (user, created_at);
CREATE INDEX sessions_by_creation ON sessions (created_at);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- step: 20
-- For lists of predictions that took long. Predictions of less than a second are not in the indexes.
CREATE INDEX predictions_slow ON predictions (created_at, id) WHERE completed_at - created_at > 1.0;
CREATE INDEX predictions_slow_by_owner ON predictions (owner, created_at, id) WHERE completed_at - created_at > 1.0;

-- step: 21
-- Erasures of the data of accounts that have begun and not ended. The body is msgpack.
CREATE TABLE erasures (
    account TEXT PRIMARY KEY,
    body    BLOB NOT NULL
) WITHOUT ROWID;

-- step: 22
-- Objects in the bucket of files.s3. `path` is that of the content below the folder of files. `state` is `uploading`
-- before the first byte is sent, `stored` when the object is complete, and `deleting` when its row in `files` or
-- `adapters` was deleted, until the object is deleted too.
CREATE TABLE bucket_objects (
    path  TEXT PRIMARY KEY,
    state TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX bucket_objects_to_delete ON bucket_objects (path) WHERE state = 'deleting';

CREATE TRIGGER files_delete_object AFTER DELETE ON files
BEGIN
    UPDATE bucket_objects SET state = 'deleting' WHERE path = OLD.path;
END;

CREATE TRIGGER adapters_delete_objects AFTER DELETE ON adapters
BEGIN
    UPDATE bucket_objects SET state = 'deleting'
    WHERE path >= 'versions/' || OLD.version || '/' AND path < 'versions/' || OLD.version || '0';
END;
