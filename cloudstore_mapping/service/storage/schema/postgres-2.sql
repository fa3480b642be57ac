-- Files whose names are those of version 0.1.0, until they are renamed.
CREATE TABLE old_names (
    account_id BIGINT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name TEXT COLLATE "C" NOT NULL,
    clashes BOOLEAN NOT NULL DEFAULT FALSE, -- whether it was reported that another file has the new name
    PRIMARY KEY (account_id, name)
);

-- A row once all names were looked at: files that come later have names of today, whatever they look like. No account's.
CREATE TABLE name_scans (at DOUBLE PRECISION NOT NULL);
