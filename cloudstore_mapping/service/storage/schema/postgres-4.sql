-- A deleted account is hidden at once; its rows are removed later, in steps.
ALTER TABLE accounts ADD COLUMN deleted BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX accounts_deleted ON accounts (id) WHERE deleted;

-- Total bytes of a blob's chunks.
ALTER TABLE blobs ADD COLUMN size BIGINT NOT NULL DEFAULT 0;
UPDATE blobs SET size = (
    SELECT coalesce(sum(octet_length(data)), 0) FROM chunks WHERE chunks.account_id = blobs.account_id AND blob_id = id
);

-- Quota counters of accounts with a limit on files or bytes, updated by each write. Other accounts have no row, because
-- counting in each write costs most of the throughput.
CREATE TABLE counters (
    account_id BIGINT PRIMARY KEY REFERENCES accounts (id) ON DELETE CASCADE,
    files BIGINT NOT NULL, -- data and media files
    bytes BIGINT NOT NULL, -- names and values, media, unfinished uploads, stored replies with their ids
    uploads BIGINT NOT NULL, -- unfinished uploads
    replies BIGINT NOT NULL, -- bytes of stored replies
    leaving BIGINT NOT NULL, -- bytes of deleted media not yet removed by `sweep`; not in `bytes`
    counted_to TEXT COLLATE "C" -- the last counted data file, in order of names; NULL after all
) WITH (fillfactor = 50); -- its rows change often
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

-- Free space in each page, for updates within the page and without index changes (HOT).
ALTER TABLE accesses SET (fillfactor = 70);
ALTER TABLE days SET (fillfactor = 70);
