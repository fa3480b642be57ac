-- What an account may use, NULL meaning without limit, and under which plan's name.
ALTER TABLE accounts ADD COLUMN plan TEXT NOT NULL DEFAULT 'unlimited';
ALTER TABLE accounts ADD COLUMN max_files INTEGER; -- data and media files together
ALTER TABLE accounts ADD COLUMN max_file_bytes INTEGER; -- of one data file
ALTER TABLE accounts ADD COLUMN max_daily_accesses INTEGER; -- of one file, from midnight to midnight UTC
ALTER TABLE accounts ADD COLUMN min_interval REAL; -- seconds between two requests
ALTER TABLE accounts ADD COLUMN max_media_bytes INTEGER; -- of one media file
ALTER TABLE accounts ADD COLUMN max_total_bytes INTEGER; -- of all media files

-- When the next request of an account with a pace may come, on any process: seconds since 1970.
ALTER TABLE accounts ADD COLUMN next_request_at REAL;

-- The unguessable part of media addresses: 32 hexadecimal digits.
ALTER TABLE accounts ADD COLUMN folder TEXT;
UPDATE accounts SET folder = lower(hex(randomblob(16)));
CREATE UNIQUE INDEX accounts_by_folder ON accounts (folder);

-- Edit passwords of data and media files that have none of their own: argon2id, like all passwords here.
ALTER TABLE accounts ADD COLUMN data_password TEXT;
ALTER TABLE accounts ADD COLUMN media_password TEXT;

-- The owner's own password for the dashboard; NULL lets nobody in. One that was given away has to be changed first.
ALTER TABLE accounts ADD COLUMN owner_password TEXT;
ALTER TABLE accounts ADD COLUMN must_change_password INTEGER NOT NULL DEFAULT 0;

-- What of an API key may be shown, so that its owner knows which it is.
ALTER TABLE api_keys ADD COLUMN hint TEXT NOT NULL DEFAULT '';
CREATE INDEX api_keys_by_account ON api_keys (account_id);

-- Who is signed in at the dashboard, by the SHA-256 of a random token.
CREATE TABLE sessions (
    hash BLOB PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_at REAL NOT NULL,
    used_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_by_account ON sessions (account_id);

-- What an owner did, or somebody in the owner's name: never a password, never a value.
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    at REAL NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL, -- the file that it was done to, or empty
    origin TEXT NOT NULL -- from where it was done
);
CREATE INDEX events_by_account ON events (account_id, id);

-- The bytes of media files, whole or on their way in; no id is used twice.
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL, -- without a reference: what an account leaves behind is taken away piece by piece
    touched_at REAL NOT NULL, -- when its last chunk came
    kept INTEGER NOT NULL DEFAULT 0 -- whether a media file has these bytes; else they are swept away
);
CREATE INDEX blobs_not_kept ON blobs (touched_at) WHERE NOT kept;

CREATE TABLE chunks (
    blob_id INTEGER NOT NULL REFERENCES blobs (id),
    number INTEGER NOT NULL, -- from 0
    data BLOB NOT NULL,
    PRIMARY KEY (blob_id, number)
);

CREATE TABLE media (
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    id TEXT NOT NULL, -- 32 hexadecimal digits, the unguessable part of its address
    name TEXT NOT NULL, -- as it was uploaded
    mimetype TEXT NOT NULL,
    size INTEGER NOT NULL,
    digest TEXT NOT NULL, -- SHA-256 of its bytes, in hexadecimal digits
    blob_id INTEGER NOT NULL REFERENCES blobs (id),
    edit_password TEXT,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (account_id, id),
    UNIQUE (account_id, name)
);

-- How often a file was used on the last day that it was, and when. Apart from the files, for this changes every second.
CREATE TABLE accesses (
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    kind TEXT NOT NULL, -- 'data' or 'media'
    name TEXT NOT NULL, -- of a media file its id
    day INTEGER NOT NULL, -- since 1970-01-01, in UTC
    count INTEGER NOT NULL, -- on that day
    last_at REAL NOT NULL,
    PRIMARY KEY (account_id, kind, name)
) WITHOUT ROWID;

-- How often all files of an account together were used.
CREATE TABLE days (
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    day INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (account_id, day)
) WITHOUT ROWID;
