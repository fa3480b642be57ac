-- Files with names of version 0.1.0, until their renaming.
CREATE TABLE old_names (
    account_id BIGINT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name TEXT COLLATE "C" NOT NULL,
    clashes BOOLEAN NOT NULL DEFAULT FALSE, -- true after the report that another file has the new name
    PRIMARY KEY (account_id, name)
);

-- One row after the scan of all names: later files have present names, whatever they look like. Without account.
CREATE TABLE name_scans (at DOUBLE PRECISION NOT NULL);
