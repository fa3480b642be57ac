-- Fingerprint of the request of a stored reply; NULL for replies stored by earlier versions.
ALTER TABLE answers ADD COLUMN fingerprint BYTEA;
