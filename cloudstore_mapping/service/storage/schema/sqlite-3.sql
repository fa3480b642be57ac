-- One row, changed by every transaction that writes: it tells which write-ahead log continues which file.
CREATE TABLE lineage (
    token BLOB NOT NULL, -- 16 random bytes, new with each transaction
    previous BLOB NOT NULL -- the token before
);
INSERT INTO lineage VALUES (randomblob(16), zeroblob(16));
