-- Files whose names are those of version 0.1.0, until they are renamed.
CREATE TABLE old_names (
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    clashes INTEGER NOT NULL DEFAULT 0, -- whether it was reported that another file has the new name
    PRIMARY KEY (account_id, name)
) WITHOUT ROWID;

-- A row once all names were looked at: files that come later have names of today, whatever they look like.
CREATE TABLE name_scans (at REAL NOT NULL);
