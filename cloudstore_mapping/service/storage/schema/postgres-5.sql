-- Free space in the pages of frequently changed rows, for updates without new index entries (HOT).
ALTER TABLE accesses SET (fillfactor = 80);
ALTER TABLE days SET (fillfactor = 50);
-- One row per connection, changed by each commit: frequent vacuums keep the table small.
ALTER TABLE writers SET (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000
);
