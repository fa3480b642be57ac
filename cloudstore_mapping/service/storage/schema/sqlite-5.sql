-- Fingerprint of the request that a stored reply belongs to; NULL for replies stored by earlier versions.
ALTER TABLE answers ADD COLUMN fingerprint BLOB;
