-- A deleted account is gone for everyone at once; what it held is removed later, in steps.
ALTER TABLE accounts ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX accounts_deleted ON accounts (id) WHERE deleted;

-- Bytes of all chunks of a blob.
ALTER TABLE blobs ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE blobs SET size = (SELECT coalesce(sum(length(data)), 0) FROM chunks WHERE blob_id = blobs.id);

-- Quota counters of an account with a limit on files or bytes, kept exact by each write; others have no row.
CREATE TABLE counters (
    account_id INTEGER PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
    files INTEGER NOT NULL, -- data and media files
    bytes INTEGER NOT NULL, -- names and values, media, unfinished uploads, stored replies with their ids
    uploads INTEGER NOT NULL, -- unfinished uploads
    replies INTEGER NOT NULL, -- bytes of stored replies
    leaving INTEGER NOT NULL, -- bytes of deleted media that `sweep` has yet to remove; not in `bytes`
    counted_to TEXT -- the last data file that is counted, in order of names; NULL once all are
);
INSERT INTO counters
SELECT
    id,
    (SELECT count(*) FROM files WHERE account_id = a.id) + (SELECT count(*) FROM media WHERE account_id = a.id),
    (SELECT coalesce(sum(length(CAST(name AS BLOB)) + length(value)), 0) FROM files WHERE account_id = a.id)
    + (SELECT coalesce(sum(size), 0) FROM blobs WHERE account_id = a.id AND (kept OR touched_at > 0))
    + (SELECT coalesce(sum(length(CAST(request AS BLOB)) + length(reply)), 0) FROM answers WHERE account_id = a.id),
    (SELECT count(*) FROM blobs WHERE account_id = a.id AND NOT kept AND touched_at > 0),
    (SELECT coalesce(sum(length(CAST(request AS BLOB)) + length(reply)), 0) FROM answers WHERE account_id = a.id),
    (SELECT coalesce(sum(size), 0) FROM blobs WHERE account_id = a.id AND NOT kept AND touched_at <= 0),
    NULL
FROM accounts AS a WHERE max_files IS NOT NULL OR max_total_bytes IS NOT NULL;
CREATE INDEX counters_unfinished ON counters (account_id) WHERE counted_to IS NOT NULL;
