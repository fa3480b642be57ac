-- Owners of files.
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    disabled INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL -- seconds since 1970, like all times here
);

-- API keys by their SHA-256: a stolen file opens nothing. Two may be live while one is exchanged for the other.
CREATE TABLE api_keys (
    hash BLOB PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_at REAL NOT NULL
) WITHOUT ROWID;

-- Data files. A table with rowids, so that the index that listings read holds names and not the values beside them.
CREATE TABLE files (
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    version TEXT NOT NULL, -- random, new at each write: never used twice, not even after a delete, on any node
    edit_password TEXT, -- argon2id, asked by save, merge and delete
    view_password TEXT, -- argon2id, asked by load
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    value BLOB NOT NULL, -- JSON in UTF-8, byte for byte as it was sent; last, for what stands behind it takes reading it
    PRIMARY KEY (account_id, name)
);

-- What requests with an id of their client's were answered, so that a repeated one is not done again.
CREATE TABLE answers (
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    request TEXT NOT NULL,
    reply BLOB NOT NULL, -- as it was sent
    answered_at REAL NOT NULL,
    PRIMARY KEY (account_id, request)
) WITHOUT ROWID;

-- By age, for forgetting old ones.
CREATE INDEX answers_by_age ON answers (answered_at);
