-- psql over TLS, on one connection and then on another. The variable "count" is the number of inserts.
\set ON_ERROR_STOP off
SELECT format('INSERT INTO tls_capture (id, client, note) VALUES (%s, ''psql'', ''psql note %s'')', n, n)
  FROM generate_series(1, :count) AS n \gexec
SELECT n, 'a row ' || n FROM generate_series(1, 3000) AS n;
PREPARE psql_a (int) AS SELECT $1 + 1, 'psql prepared';
SELECT format('EXECUTE psql_a (%s)', n) FROM generate_series(1, :count) AS n \gexec
SELECT string_agg('a' || to_char(n, 'FM000000') || ',', '') AS body FROM generate_series(100001, 231072) AS n \gset
SELECT length(:'body');
SELECT 1/0 AS psql_a;
BEGIN;
INSERT INTO tls_capture (id, client, note) VALUES (-1, 'psql', 'rolled back by a');
ROLLBACK;
\copy (SELECT n, 'psql', 'copied ' || n FROM generate_series(1, 3000) AS n) to program 'cat > /dev/null'
\connect -reuse-previous=on
SELECT 'psql on a second connection';
SELECT n, 'b row ' || n FROM generate_series(1, 4000) AS n;
SELECT 1 AS one\; SELECT 2 AS two\; SELECT 1/0 AS psql_b;
SELECT 'psql after the error';
