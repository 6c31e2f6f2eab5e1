-- The index: what is derived from the log, never trusted, always rebuildable (`agentwatch index rebuild`).
-- Statements and programs are named by their sequence number in the log; their texts stay there.
-- Times are CLOCK_REALTIME in nanoseconds. Numbers given to names depend only on the log's order,
-- so that a rebuilt index has the same content as one that grew.

-- How far the log has been read, in the same transaction as what was read. `last_digest` is the SHA-256 of the
-- last record: a log that was cut or replaced no longer holds it at that place.
CREATE TABLE position (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    next_seq INTEGER NOT NULL,
    last_digest BLOB,
    last_time INTEGER,
    first_time INTEGER,
    boot_id TEXT
);
INSERT INTO position (one, next_seq) VALUES (1, 0);

CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE,
    agent TEXT,
    user TEXT,
    host TEXT,
    boot_id TEXT,
    started INTEGER NOT NULL, -- session_start, else the first record
    ended INTEGER,            -- session_end, else the last record before the host's next boot
    start_seq INTEGER,        -- of session_start
    statements INTEGER NOT NULL DEFAULT 0,
    commands INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX session_running ON session (boot_id) WHERE ended IS NULL;

-- Every record of a session by its kind: what replay and show read.
CREATE TABLE event (
    session INTEGER NOT NULL,
    kind TEXT NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (session, kind, seq)
) WITHOUT ROWID;

CREATE TABLE connection (
    id INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL,
    name TEXT NOT NULL,
    session INTEGER,
    opened INTEGER NOT NULL, -- the first record that names it
    transport TEXT,
    peer TEXT,
    errno INTEGER,           -- of the connect; null where none was seen
    protocol TEXT,           -- of its first statement
    UNIQUE (boot_id, name)
);
CREATE INDEX connection_session ON connection (session);

CREATE TABLE database (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- A table as statements write it: no schema where none is written.
CREATE TABLE relation (
    id INTEGER PRIMARY KEY,
    schema TEXT,
    name TEXT NOT NULL
);
CREATE UNIQUE INDEX relation_name ON relation (name, coalesce(schema, ''), schema IS NULL);

-- What was derived from a statement's text; few shapes serve many statements.
CREATE TABLE shape (
    id INTEGER PRIMARY KEY,
    value TEXT NOT NULL UNIQUE, -- JSON: [operation, confidence, reason, [[name, schema, access], ...] or null]
    reads INTEGER NOT NULL,
    writes INTEGER NOT NULL
);

CREATE TABLE statement (
    seq INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    session INTEGER,
    connection INTEGER,
    database INTEGER,
    shape INTEGER NOT NULL,
    doubt INTEGER NOT NULL -- bits of index.doubt.Doubt
);
CREATE INDEX statement_time ON statement (time);
CREATE INDEX statement_doubt ON statement (time) WHERE doubt <> 0;

CREATE TABLE touch (
    relation INTEGER NOT NULL,
    time INTEGER NOT NULL,
    statement INTEGER NOT NULL,
    access TEXT NOT NULL,
    session INTEGER,
    PRIMARY KEY (relation, time, statement, access)
) WITHOUT ROWID;

CREATE TABLE session_touch (
    session INTEGER NOT NULL,
    relation INTEGER NOT NULL,
    access TEXT NOT NULL,
    PRIMARY KEY (session, relation, access)
) WITHOUT ROWID;

-- What PREPARE and DECLARE CURSOR named on a connection, so that EXECUTE and FETCH can be resolved.
CREATE TABLE promise (
    connection INTEGER NOT NULL,
    name TEXT NOT NULL, -- 'statement NAME' or 'cursor NAME'
    shape INTEGER NOT NULL,
    PRIMARY KEY (connection, name)
) WITHOUT ROWID;

-- Programs: an exec, also one that failed, and the record that ended it (its exit, or the next exec of the process).
CREATE TABLE command (
    seq INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    session INTEGER,
    pid INTEGER,
    exec_id INTEGER,
    failed INTEGER NOT NULL,
    sought TEXT,             -- the program's name, where it failed because it was not in a folder of PATH
    superseded INTEGER NOT NULL DEFAULT 0, -- the same process then tried the same name elsewhere
    status INTEGER,
    duration_ns INTEGER,
    ended_seq INTEGER
);
CREATE INDEX command_time ON command (time);
CREATE INDEX command_running ON command (pid) WHERE ended_seq IS NULL AND failed = 0;
CREATE INDEX command_sought ON command (pid, sought) WHERE sought IS NOT NULL AND superseded = 0;

-- What is missing, from `since` to `time` (null: it goes on). No session: it concerns every session of the host.
CREATE TABLE gap (
    seq INTEGER PRIMARY KEY,
    since INTEGER NOT NULL,
    time INTEGER,
    session INTEGER,
    cause TEXT NOT NULL,
    count INTEGER,
    bytes INTEGER
);

-- Gaps that go on: by what is not seen, the pin of a probe or `canary`.
CREATE TABLE blind (
    what TEXT PRIMARY KEY,
    gap INTEGER NOT NULL
) WITHOUT ROWID;

-- Bytes of a connection that no decoder read; the latest record of each connection. `final`: nothing follows.
CREATE TABLE opaque (
    connection INTEGER PRIMARY KEY,
    session INTEGER,
    since INTEGER NOT NULL,
    time INTEGER NOT NULL,
    reason TEXT NOT NULL,
    peer TEXT,
    bytes_out INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL,
    final INTEGER NOT NULL
);
CREATE INDEX opaque_session ON opaque (session);

-- What a session asked daemons to do: what comes of it is recorded in no session.
CREATE TABLE delegation (
    seq INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    session INTEGER,
    channel TEXT NOT NULL,
    operation TEXT -- null: a connection to the daemon, and nothing more is known
);
CREATE INDEX delegation_session ON delegation (session);
