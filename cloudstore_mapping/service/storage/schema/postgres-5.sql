-- Rows that change all the time get room in their page, so that a change is no new entry in an index.
ALTER TABLE accesses SET (fillfactor = 80);
ALTER TABLE days SET (fillfactor = 50);
-- A row for each connection, which changes with each commit: vacuumed often, so that the table stays as small as it is.
ALTER TABLE writers SET (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000
);
