-- A deleted account is gone for everyone at once; what it held is removed later, in steps.
ALTER TABLE accounts ADD COLUMN deleted BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX accounts_deleted ON accounts (id) WHERE deleted;

-- Bytes of all chunks of a blob.
ALTER TABLE blobs ADD COLUMN size BIGINT NOT NULL DEFAULT 0;
UPDATE blobs SET size = (
    SELECT coalesce(sum(octet_length(data)), 0) FROM chunks WHERE chunks.account_id = blobs.account_id AND blob_id = id
);

-- Quota counters of an account with a limit on files or bytes, kept exact by each write; others have no row, for a
-- counter in each write costs most of the throughput.
CREATE TABLE counters (
    account_id BIGINT PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
    files BIGINT NOT NULL, -- data and media files
    bytes BIGINT NOT NULL, -- names and values, media, unfinished uploads, stored replies with their ids
    uploads BIGINT NOT NULL, -- unfinished uploads
    replies BIGINT NOT NULL, -- bytes of stored replies
    leaving BIGINT NOT NULL, -- bytes of deleted media that `sweep` has yet to remove; not in `bytes`
    counted_to TEXT COLLATE "C" -- the last data file that is counted, in order of names; NULL once all are
) WITH (fillfactor = 50); -- its rows change all the time
INSERT INTO counters
SELECT
    id,
    (SELECT count(*) FROM files WHERE account_id = a.id) + (SELECT count(*) FROM media WHERE account_id = a.id),
    (SELECT coalesce(sum(octet_length(name) + octet_length(value)), 0) FROM files WHERE account_id = a.id)
    + (SELECT coalesce(sum(size), 0) FROM blobs WHERE account_id = a.id AND (kept OR touched_at > 0))
    + (SELECT coalesce(sum(octet_length(request) + octet_length(reply)), 0) FROM answers WHERE account_id = a.id),
    (SELECT count(*) FROM blobs WHERE account_id = a.id AND NOT kept AND touched_at > 0),
    (SELECT coalesce(sum(octet_length(request) + octet_length(reply)), 0) FROM answers WHERE account_id = a.id),
    (SELECT coalesce(sum(size), 0) FROM blobs WHERE account_id = a.id AND NOT kept AND touched_at <= 0),
    NULL
FROM accounts AS a WHERE max_files IS NOT NULL OR max_total_bytes IS NOT NULL;
CREATE INDEX counters_unfinished ON counters (account_id) WHERE counted_to IS NOT NULL;

-- Room in each page, so that a count is updated in its page and in no index (HOT).
ALTER TABLE accesses SET (fillfactor = 70);
ALTER TABLE days SET (fillfactor = 70);
