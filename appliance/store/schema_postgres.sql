-- The tables on PostgreSQL, in numbered steps; schema.sql has those on SQLite, and the reasons. The table
-- store_format has the number of steps that a database has had. A step that has been released is never edited: append
-- the next number instead. Texts are sorted by their bytes (COLLATE "C"), as SQLite does. BYTEA is msgpack.

-- step: 1
-- The tables of step 22 of schema.sql.

CREATE TABLE store_format (
    steps INTEGER NOT NULL
);
INSERT INTO store_format VALUES (0);

-- The appliance that owns the database. Each new owner adds 1 to the generation.
CREATE TABLE store_owner (
    generation BIGINT NOT NULL,
    holder     TEXT NOT NULL
);
INSERT INTO store_owner VALUES (0, '');

CREATE TABLE predictions (
    number        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            TEXT COLLATE "C" NOT NULL UNIQUE,
    model         TEXT COLLATE "C" NOT NULL,
    version       TEXT COLLATE "C" NOT NULL,
    owner         TEXT COLLATE "C" NOT NULL,
    status        TEXT COLLATE "C" NOT NULL,
    source        TEXT COLLATE "C" NOT NULL,
    created_at    DOUBLE PRECISION NOT NULL,
    started_at    DOUBLE PRECISION,
    completed_at  DOUBLE PRECISION,
    deadline      DOUBLE PRECISION,
    stream_token  TEXT COLLATE "C" NOT NULL UNIQUE,
    attempt       BIGINT NOT NULL,
    n             BIGINT NOT NULL,
    data_removed  INTEGER NOT NULL,
    error         TEXT COLLATE "C",
    logs          TEXT COLLATE "C" NOT NULL,
    output        BYTEA,
    metrics       BYTEA,
    webhook       BYTEA,
    deployment    TEXT COLLATE "C",
    destination   TEXT COLLATE "C",
    parent        TEXT COLLATE "C",
    operation     TEXT COLLATE "C",
    token         TEXT COLLATE "C",
    hardware      TEXT COLLATE "C",
    trace         TEXT COLLATE "C",
    predict_us    BIGINT NOT NULL DEFAULT 0,
    cold_start_us BIGINT NOT NULL DEFAULT 0,
    input_tokens  BIGINT NOT NULL DEFAULT 0,
    output_tokens BIGINT NOT NULL DEFAULT 0
);

CREATE INDEX predictions_by_time
ON predictions (owner, (destination IS NOT NULL), created_at, id, model, status);
CREATE INDEX predictions_by_creation ON predictions (created_at, id, owner, model, status, token);
CREATE INDEX predictions_unfinished ON predictions (created_at, id) WHERE status IN ('starting', 'processing');
CREATE INDEX predictions_with_data ON predictions (completed_at, number)
WHERE completed_at IS NOT NULL AND data_removed = 0;
CREATE INDEX predictions_by_version ON predictions (version);
CREATE INDEX predictions_by_deployment ON predictions (deployment, created_at) WHERE deployment IS NOT NULL;
CREATE INDEX predictions_by_parent ON predictions (parent, created_at, id) WHERE parent IS NOT NULL;
CREATE INDEX predictions_by_token ON predictions (token, created_at, id) WHERE token IS NOT NULL;
CREATE INDEX predictions_by_model ON predictions (model, created_at, id);
CREATE INDEX predictions_by_owner ON predictions (owner, created_at, id);
CREATE INDEX predictions_by_owner_and_model ON predictions (owner, model, created_at, id);
CREATE INDEX predictions_by_source ON predictions (source, created_at, id) WHERE source <> 'api';
CREATE INDEX trainings_by_creation ON predictions (created_at, id) WHERE destination IS NOT NULL;
CREATE INDEX predictions_by_end ON predictions (status, created_at, id)
WHERE status IN ('failed', 'canceled', 'aborted');
CREATE INDEX predictions_by_owner_and_end ON predictions (owner, status, created_at, id)
WHERE status IN ('failed', 'canceled', 'aborted');
CREATE INDEX predictions_slow ON predictions (created_at, id) WHERE completed_at - created_at > 1.0;
CREATE INDEX predictions_slow_by_owner ON predictions (owner, created_at, id) WHERE completed_at - created_at > 1.0;

-- Apart from predictions, because PostgreSQL writes a new row at each change.
CREATE TABLE inputs (
    prediction BIGINT PRIMARY KEY REFERENCES predictions (number),
    body       BYTEA NOT NULL
);

CREATE TABLE events (
    prediction BIGINT NOT NULL REFERENCES predictions (number),
    attempt    BIGINT NOT NULL,
    n          BIGINT NOT NULL,
    body       BYTEA NOT NULL,
    PRIMARY KEY (prediction, attempt, n)
);

-- Few indexes, so that an insert writes little. Deleted rows stay in the table until a vacuum, so a search by id
-- needs an index, other than on SQLite.
CREATE TABLE unindexed_predictions (
    number        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            TEXT COLLATE "C" NOT NULL,
    stream_token  TEXT COLLATE "C" NOT NULL,
    model         TEXT COLLATE "C" NOT NULL,
    version       TEXT COLLATE "C" NOT NULL,
    owner         TEXT COLLATE "C" NOT NULL,
    status        TEXT COLLATE "C" NOT NULL,
    source        TEXT COLLATE "C" NOT NULL,
    created_at    DOUBLE PRECISION NOT NULL,
    started_at    DOUBLE PRECISION,
    completed_at  DOUBLE PRECISION,
    deadline      DOUBLE PRECISION,
    attempt       BIGINT NOT NULL,
    n             BIGINT NOT NULL,
    data_removed  INTEGER NOT NULL,
    error         TEXT COLLATE "C",
    deployment    TEXT COLLATE "C",
    destination   TEXT COLLATE "C",
    parent        TEXT COLLATE "C",
    operation     TEXT COLLATE "C",
    token         TEXT COLLATE "C",
    hardware      TEXT COLLATE "C",
    trace         TEXT COLLATE "C",
    predict_us    BIGINT NOT NULL,
    cold_start_us BIGINT NOT NULL,
    input_tokens  BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    metrics       BYTEA,
    webhook       BYTEA,
    logs          TEXT COLLATE "C" NOT NULL,
    output        BYTEA,
    input         BYTEA NOT NULL
);

CREATE INDEX unindexed_predictions_by_id ON unindexed_predictions (id);
CREATE INDEX unindexed_predictions_by_stream_token ON unindexed_predictions (stream_token);

CREATE TABLE run_counts (
    model TEXT COLLATE "C" PRIMARY KEY,
    count BIGINT NOT NULL
);

CREATE TABLE deleted_predictions (
    id TEXT COLLATE "C" PRIMARY KEY
);

CREATE TABLE usage (
    day           TEXT COLLATE "C" NOT NULL,
    model         TEXT COLLATE "C" NOT NULL,
    work          TEXT COLLATE "C" NOT NULL,
    owner         TEXT COLLATE "C" NOT NULL,
    token         TEXT COLLATE "C" NOT NULL,
    hardware      TEXT COLLATE "C" NOT NULL,
    succeeded     BIGINT NOT NULL,
    failed        BIGINT NOT NULL,
    canceled      BIGINT NOT NULL,
    aborted       BIGINT NOT NULL,
    predict_us    BIGINT NOT NULL,
    cold_starts   BIGINT NOT NULL,
    cold_start_us BIGINT NOT NULL,
    input_tokens  BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    PRIMARY KEY (day, model, work, owner, token, hardware)
);

-- Leaving `processing` writes the whole record, so its events go in the same statement.
CREATE FUNCTION events_are_folded() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM events WHERE prediction = OLD.number;
    RETURN NULL;
END $$;
CREATE TRIGGER events_are_folded AFTER UPDATE OF status ON predictions
FOR EACH ROW WHEN (OLD.status = 'processing') EXECUTE FUNCTION events_are_folded();

CREATE FUNCTION runs_are_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM deleted_predictions WHERE id = NEW.id) THEN
        INSERT INTO run_counts (model, count) VALUES (NEW.model, 1)
        ON CONFLICT (model) DO UPDATE SET count = run_counts.count + 1;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER runs_are_counted AFTER INSERT ON predictions FOR EACH ROW EXECUTE FUNCTION runs_are_counted();

CREATE FUNCTION usage_is_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' AND EXISTS (SELECT 1 FROM deleted_predictions WHERE id = NEW.id) THEN
        RETURN NULL;
    END IF;
    INSERT INTO usage VALUES (
        to_char(to_timestamp(trunc(coalesce(NEW.completed_at, NEW.created_at))) AT TIME ZONE 'UTC', 'YYYY-MM-DD'),
        NEW.model, CASE WHEN NEW.destination IS NULL THEN 'prediction' ELSE 'training' END, NEW.owner,
        coalesce(NEW.token, ''), coalesce(NEW.hardware, ''), (NEW.status = 'succeeded')::integer,
        (NEW.status = 'failed')::integer, (NEW.status = 'canceled')::integer, (NEW.status = 'aborted')::integer,
        NEW.predict_us, (NEW.cold_start_us > 0)::integer, NEW.cold_start_us, NEW.input_tokens, NEW.output_tokens
    ) ON CONFLICT (day, model, work, owner, token, hardware) DO UPDATE SET
        succeeded = usage.succeeded + excluded.succeeded, failed = usage.failed + excluded.failed,
        canceled = usage.canceled + excluded.canceled, aborted = usage.aborted + excluded.aborted,
        predict_us = usage.predict_us + excluded.predict_us,
        cold_starts = usage.cold_starts + excluded.cold_starts,
        cold_start_us = usage.cold_start_us + excluded.cold_start_us,
        input_tokens = usage.input_tokens + excluded.input_tokens,
        output_tokens = usage.output_tokens + excluded.output_tokens;
    RETURN NULL;
END $$;
CREATE TRIGGER usage_is_counted AFTER UPDATE OF status ON predictions
FOR EACH ROW WHEN (NEW.status IN ('succeeded', 'failed', 'canceled', 'aborted')) EXECUTE FUNCTION usage_is_counted();
CREATE TRIGGER usage_of_new_is_counted AFTER INSERT ON predictions
FOR EACH ROW WHEN (NEW.status IN ('succeeded', 'failed', 'canceled', 'aborted')) EXECUTE FUNCTION usage_is_counted();

CREATE FUNCTION prediction_is_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM inputs WHERE prediction = OLD.number;
    DELETE FROM events WHERE prediction = OLD.number;
    DELETE FROM deliveries WHERE prediction = OLD.id;
    INSERT INTO deleted_predictions (id) VALUES (OLD.id) ON CONFLICT DO NOTHING;
    RETURN OLD;
END $$;
CREATE TRIGGER prediction_is_deleted BEFORE DELETE ON predictions
FOR EACH ROW EXECUTE FUNCTION prediction_is_deleted();

CREATE TABLE versions (
    id         TEXT COLLATE "C" NOT NULL,
    model      TEXT COLLATE "C" NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    document   BYTEA NOT NULL,
    PRIMARY KEY (id, model)
);

CREATE INDEX versions_by_model ON versions (model, created_at, id);

CREATE TABLE tokens (
    id             TEXT COLLATE "C" PRIMARY KEY,
    name           TEXT COLLATE "C" NOT NULL,
    owner          TEXT COLLATE "C" NOT NULL,
    digest         TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at     DOUBLE PRECISION NOT NULL,
    revoked_at     DOUBLE PRECISION,
    scope          TEXT COLLATE "C" NOT NULL DEFAULT 'admin',
    description    TEXT COLLATE "C" NOT NULL DEFAULT '',
    expires_at     DOUBLE PRECISION,
    networks       TEXT COLLATE "C",
    models         TEXT COLLATE "C",
    last_used_at   DOUBLE PRECISION,
    last_used_from TEXT COLLATE "C"
);

CREATE TABLE deliveries (
    id         TEXT COLLATE "C" PRIMARY KEY,
    prediction TEXT COLLATE "C" NOT NULL,
    attempts   BIGINT NOT NULL,
    due_at     DOUBLE PRECISION NOT NULL,
    problem    TEXT COLLATE "C",
    ended_at   DOUBLE PRECISION,
    receiver   TEXT COLLATE "C" NOT NULL DEFAULT ' '
);

CREATE INDEX deliveries_by_time ON deliveries (due_at) WHERE ended_at IS NULL;
CREATE INDEX deliveries_by_prediction ON deliveries (prediction);
CREATE INDEX deliveries_by_receiver ON deliveries (receiver, due_at) WHERE ended_at IS NULL;

CREATE TABLE webhook_keys (
    key        TEXT COLLATE "C" PRIMARY KEY,
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION,
    owner      TEXT COLLATE "C" NOT NULL DEFAULT ''
);

CREATE TABLE files (
    id           TEXT COLLATE "C" PRIMARY KEY,
    owner        TEXT COLLATE "C" NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    content_type TEXT COLLATE "C" NOT NULL,
    size         BIGINT NOT NULL,
    sha256       TEXT COLLATE "C" NOT NULL,
    md5          TEXT COLLATE "C" NOT NULL,
    metadata     BYTEA NOT NULL,
    created_at   DOUBLE PRECISION NOT NULL,
    expires_at   DOUBLE PRECISION,
    prediction   TEXT COLLATE "C",
    path         TEXT COLLATE "C" NOT NULL
);

CREATE INDEX files_by_time ON files (owner, created_at, id) WHERE prediction IS NULL;
CREATE INDEX files_by_prediction ON files (prediction) WHERE prediction IS NOT NULL;
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE models (
    name       TEXT COLLATE "C" PRIMARY KEY,
    created_at DOUBLE PRECISION NOT NULL,
    body       BYTEA NOT NULL
);

-- `rowid` has the order of the insertions, as on SQLite, where each table has this column.
CREATE TABLE adapters (
    rowid   BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    version TEXT COLLATE "C" NOT NULL,
    model   TEXT COLLATE "C" NOT NULL,
    body    BYTEA NOT NULL,
    PRIMARY KEY (version, model)
);

CREATE TABLE releases (
    rowid  BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    owner  TEXT COLLATE "C" NOT NULL,
    name   TEXT COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    body   BYTEA NOT NULL,
    PRIMARY KEY (owner, name, number)
);

CREATE TABLE examples (
    rowid      BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    prediction TEXT COLLATE "C" PRIMARY KEY,
    model      TEXT COLLATE "C" NOT NULL
);

CREATE TABLE secrets (
    name  TEXT COLLATE "C" PRIMARY KEY,
    value TEXT COLLATE "C" NOT NULL
);

CREATE TABLE builds (
    id   TEXT COLLATE "C" PRIMARY KEY,
    over INTEGER NOT NULL,
    body BYTEA NOT NULL
);

CREATE INDEX builds_under_way ON builds (id) WHERE over = 0;

CREATE TABLE projects (
    rowid   BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    version TEXT COLLATE "C" NOT NULL,
    model   TEXT COLLATE "C" NOT NULL,
    body    BYTEA NOT NULL,
    PRIMARY KEY (version, model)
);

CREATE TABLE writable (
    rowid INTEGER PRIMARY KEY,
    at    DOUBLE PRECISION NOT NULL
);

CREATE TABLE footprints (
    loaded      TEXT COLLATE "C" NOT NULL,
    device      TEXT COLLATE "C" NOT NULL,
    model       TEXT COLLATE "C" NOT NULL,
    peak        BIGINT NOT NULL,
    main        BIGINT NOT NULL,
    measured_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (loaded, device)
);

CREATE TABLE conversations (
    rowid      BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    id         TEXT COLLATE "C" PRIMARY KEY,
    owner      TEXT COLLATE "C" NOT NULL,
    title      TEXT COLLATE "C" NOT NULL,
    model      TEXT COLLATE "C" NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    revision   BIGINT NOT NULL,
    size       BIGINT NOT NULL,
    body       BYTEA NOT NULL
);

CREATE INDEX conversations_by_owner ON conversations (owner, updated_at, id);
CREATE INDEX conversations_by_change ON conversations (updated_at, rowid);

-- JSON can escape the character NUL, which PostgreSQL refuses; for filters another character does as well.
CREATE FUNCTION audit_field(body TEXT, name TEXT) RETURNS TEXT IMMUTABLE LANGUAGE sql AS $$
    SELECT replace(body, '\u0000', '\ufffd')::json ->> name
$$;

CREATE TABLE audit (
    number   BIGINT PRIMARY KEY,
    body     TEXT COLLATE "C" NOT NULL,
    previous TEXT COLLATE "C" NOT NULL,
    hash     TEXT COLLATE "C" NOT NULL,
    at       TEXT COLLATE "C" GENERATED ALWAYS AS (audit_field(body, 'at')) STORED,
    action   TEXT COLLATE "C" GENERATED ALWAYS AS (audit_field(body, 'action')) STORED,
    object   TEXT COLLATE "C" GENERATED ALWAYS AS (audit_field(body, 'object')) STORED,
    owner    TEXT COLLATE "C" GENERATED ALWAYS AS (audit_field(body, 'owner')) STORED,
    token    TEXT COLLATE "C" GENERATED ALWAYS AS (audit_field(body, 'token')) STORED,
    address  TEXT COLLATE "C" GENERATED ALWAYS AS (audit_field(body, 'address')) STORED
);

CREATE TABLE audit_positions (
    name   TEXT COLLATE "C" PRIMARY KEY,
    number BIGINT NOT NULL,
    hash   TEXT COLLATE "C" NOT NULL
);

CREATE FUNCTION audit_is_not_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'records of the audit log cannot be changed' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION audit_is_not_changed();

CREATE FUNCTION audit_is_not_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.number > coalesce((SELECT number FROM audit_positions WHERE name = 'deleted'), 0) THEN
        RAISE EXCEPTION 'records of the audit log cannot be deleted before their retention ends'
        USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_is_not_deleted();

CREATE TABLE users (
    name            TEXT COLLATE "C" PRIMARY KEY,
    scope           TEXT COLLATE "C" NOT NULL,
    created_at      DOUBLE PRECISION NOT NULL,
    password        TEXT COLLATE "C",
    issuer          TEXT COLLATE "C",
    subject         TEXT COLLATE "C",
    groups_claim    TEXT COLLATE "C" NOT NULL,
    last_sign_in_at DOUBLE PRECISION,
    UNIQUE (issuer, subject)
);

CREATE TABLE sessions (
    id             TEXT COLLATE "C" PRIMARY KEY,
    "user"         TEXT COLLATE "C" NOT NULL,
    digest         TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at     DOUBLE PRECISION NOT NULL,
    expires_at     DOUBLE PRECISION NOT NULL,
    ended_at       DOUBLE PRECISION,
    address        TEXT COLLATE "C" NOT NULL,
    browser        TEXT COLLATE "C" NOT NULL,
    last_used_at   DOUBLE PRECISION,
    last_used_from TEXT COLLATE "C"
);

CREATE INDEX sessions_by_user ON sessions ("user", created_at);
CREATE INDEX sessions_by_creation ON sessions (created_at);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE erasures (
    account TEXT COLLATE "C" PRIMARY KEY,
    body    BYTEA NOT NULL
);

CREATE TABLE bucket_objects (
    path  TEXT COLLATE "C" PRIMARY KEY,
    state TEXT COLLATE "C" NOT NULL
);

CREATE INDEX bucket_objects_to_delete ON bucket_objects (path) WHERE state = 'deleting';

CREATE FUNCTION files_delete_object() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE bucket_objects SET state = 'deleting' WHERE path = OLD.path;
    RETURN NULL;
END $$;
CREATE TRIGGER files_delete_object AFTER DELETE ON files FOR EACH ROW EXECUTE FUNCTION files_delete_object();

CREATE FUNCTION adapters_delete_objects() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE bucket_objects SET state = 'deleting'
    WHERE path >= 'versions/' || OLD.version || '/' AND path < 'versions/' || OLD.version || '0';
    RETURN NULL;
END $$;
CREATE TRIGGER adapters_delete_objects AFTER DELETE ON adapters
FOR EACH ROW EXECUTE FUNCTION adapters_delete_objects();

-- step: 2
-- The lease of the head of a cluster. Each new holder adds 1 to the term; `head` is its name and address.
ALTER TABLE store_owner ADD COLUMN term BIGINT NOT NULL DEFAULT 0, ADD COLUMN head TEXT NOT NULL DEFAULT '';

-- step: 3
-- The last transaction of each connection that writes. A connection that is lost during a COMMIT finds out here
-- whether the transaction was committed.
CREATE TABLE store_writers (
    writer     TEXT COLLATE "C" PRIMARY KEY,
    batch      TEXT COLLATE "C" NOT NULL,
    written_at TIMESTAMPTZ NOT NULL
);
