SELECT 1
VALUES (1, 'a'), (2, 'b')
TABLE orders
SELECT * FROM orders
select * from ORDERS
SELECT * FROM "Orders"
SELECT * FROM "orders"
SELECT "Total" FROM public."Orders" AS orders
SELECT * FROM public.orders
SELECT * FROM sales.orders
SELECT * FROM SALES."orders"
SELECT * FROM postgres.sales.orders
SELECT * FROM orders, sales.orders AS s
SELECT * FROM "odd name; --"
SELECT "col ""A""" FROM "odd name; --"
SELECT * FROM größe
SELECT * FROM U&"gr\00F6\00DFe"
SELECT * FROM U&"gr!00F6!00DFe" UESCAPE '!'
SELECT id, "from" FROM "select"
SELECT * FROM ONLY orders
SELECT * FROM orders o WHERE o.id = 1 AND o.status IN ('open', 'paid', 'FROM customers')
SELECT 'FROM customers', $$ JOIN items $$, E'it''s \' FROM stock' FROM orders
SELECT /* FROM customers /* nested */ JOIN items */ id FROM orders -- , stock
SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer_id
SELECT * FROM orders LEFT JOIN items ON items.order_id = orders.id RIGHT JOIN stock USING (sku)
SELECT * FROM orders NATURAL JOIN items
SELECT * FROM orders CROSS JOIN customers CROSS JOIN stock
SELECT * FROM orders FULL OUTER JOIN customers ON false
SELECT * FROM (orders JOIN customers ON true) JOIN items ON true
SELECT * FROM (SELECT * FROM orders) AS o, (SELECT * FROM customers) AS c
SELECT * FROM orders o, LATERAL (SELECT * FROM items i WHERE i.order_id = o.id LIMIT 1) x
SELECT * FROM orders o LEFT JOIN LATERAL (SELECT sum(qty) FROM items i WHERE i.order_id = o.id) x ON true
SELECT * FROM orders WHERE customer_id IN (SELECT id FROM customers WHERE region = 'north')
SELECT * FROM orders o WHERE EXISTS (SELECT FROM items i WHERE i.order_id = o.id)
SELECT * FROM orders o WHERE NOT EXISTS (SELECT 1 FROM items WHERE order_id = o.id AND EXISTS (SELECT 1 FROM stock))
SELECT (SELECT count(*) FROM items), (SELECT max(qty) FROM stock) FROM orders
SELECT ARRAY(SELECT id FROM customers), ROW((SELECT 1 FROM stock LIMIT 1))
SELECT CASE WHEN EXISTS (SELECT FROM stock) THEN (SELECT 1 FROM items LIMIT 1) ELSE 0 END
SELECT * FROM orders WHERE total > ALL (SELECT amount FROM sales.targets)
SELECT * FROM orders ORDER BY (SELECT qty FROM stock LIMIT 1)
SELECT count(*) FROM orders GROUP BY customer_id HAVING count(*) > (SELECT count(*) FROM customers)
SELECT * FROM orders LIMIT (SELECT count(*) FROM stock)
SELECT sum(total) OVER (PARTITION BY customer_id ORDER BY (SELECT 1 FROM events LIMIT 1)) FROM orders
SELECT id FROM orders UNION SELECT id FROM customers
SELECT id FROM orders UNION ALL SELECT id FROM customers EXCEPT SELECT id FROM items INTERSECT SELECT id FROM employees
(SELECT id FROM orders LIMIT 1) UNION (SELECT id FROM customers ORDER BY id)
SELECT * FROM (VALUES ((SELECT 1 FROM stock LIMIT 1)), (2)) v(a), orders
SELECT * FROM generate_series(1, 3) g, orders
SELECT * FROM generate_series(1, (SELECT max(id) FROM items)) g
SELECT * FROM unnest(ARRAY[1, 2]) WITH ORDINALITY AS orders(a, b)
SELECT * FROM ROWS FROM (generate_series(1, 2), generate_series(1, 3)) AS customers
SELECT * FROM json_to_recordset('[]') AS orders(a int), items
SELECT double(id) FROM orders
SELECT EXTRACT(year FROM created), substring(note FROM 1 FOR 2), trim(BOTH 'x' FROM status) FROM orders
SELECT * FROM orders WHERE note IS DISTINCT FROM status
SELECT * FROM orders TABLESAMPLE SYSTEM (10)
SELECT DISTINCT ON (customer_id) * FROM orders ORDER BY customer_id
SELECT orders FROM orders
SELECT orders.* FROM orders AS orders
SELECT customers.id FROM orders AS customers
SELECT * FROM orders FOR UPDATE
SELECT * FROM orders o JOIN customers c ON true FOR SHARE OF c
SELECT * FROM orders FOR NO KEY UPDATE SKIP LOCKED
SELECT relname FROM pg_class
SELECT * FROM pg_catalog.pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
SELECT 'orders'::regclass, nextval(pg_get_serial_sequence('orders', 'id'))
SELECT xmlelement(name a, (SELECT name FROM customers LIMIT 1))
SELECT count(*) FILTER (WHERE EXISTS (SELECT FROM stock)) FROM orders
SELECT array_agg(id ORDER BY (SELECT 1 FROM stock LIMIT 1)) FROM orders
SELECT id FROM orders GROUP BY GROUPING SETS ((id), ()) HAVING (SELECT true FROM stock LIMIT 1)
WITH o AS (SELECT * FROM orders) SELECT * FROM o
WITH orders AS (SELECT * FROM customers) SELECT * FROM orders
WITH orders AS (SELECT * FROM orders) SELECT * FROM orders
WITH orders AS (SELECT * FROM customers) SELECT * FROM public.orders AS o, orders
WITH a AS (SELECT * FROM orders), b AS (SELECT * FROM a JOIN items ON true) SELECT * FROM b
WITH a AS (SELECT 1 FROM items), items AS (SELECT * FROM a) SELECT * FROM items
WITH items AS (SELECT 1 AS x), a AS (SELECT * FROM items) SELECT * FROM a
WITH RECURSIVE t AS (SELECT id, boss FROM employees WHERE boss IS NULL UNION ALL SELECT e.id, e.boss FROM employees e JOIN t ON e.boss = t.id) SELECT * FROM t
WITH RECURSIVE employees AS (SELECT 1 AS n UNION SELECT n + 1 FROM employees WHERE n < 5) SELECT * FROM employees
WITH RECURSIVE a AS (SELECT * FROM items), items AS (SELECT 1 AS id) SELECT * FROM a
WITH x AS MATERIALIZED (SELECT * FROM orders), y AS NOT MATERIALIZED (SELECT * FROM x) SELECT * FROM y
WITH x(a, b) AS (SELECT id, total FROM orders) SELECT a FROM x
SELECT * FROM (WITH customers AS (SELECT * FROM orders) SELECT * FROM customers) s JOIN customers ON true
SELECT * FROM customers, (WITH customers AS (SELECT * FROM orders) SELECT * FROM customers) s
WITH customers AS (SELECT 1 AS id) SELECT * FROM orders WHERE customer_id IN (SELECT id FROM customers)
WITH a AS (WITH b AS (SELECT * FROM orders) SELECT * FROM b) SELECT * FROM a
WITH a AS (WITH stock AS (SELECT * FROM orders) SELECT * FROM stock) SELECT * FROM a, stock
(WITH stock AS (SELECT id FROM orders) SELECT id FROM stock) UNION SELECT qty FROM stock
WITH stock AS (SELECT id FROM orders) (SELECT id FROM stock UNION SELECT id FROM customers) UNION SELECT id FROM stock
WITH "Orders" AS (SELECT * FROM customers) SELECT * FROM orders, "Orders"
WITH ORDERS AS (SELECT * FROM customers) SELECT * FROM Orders
WITH d AS (DELETE FROM orders RETURNING *) SELECT * FROM d
WITH d AS (DELETE FROM orders RETURNING *) INSERT INTO archive.orders_2020 SELECT * FROM d
WITH u AS (UPDATE orders SET status = 'x' WHERE id IN (SELECT order_id FROM items) RETURNING id) SELECT * FROM u JOIN customers ON true
WITH i AS (INSERT INTO stock VALUES ('a', 1) RETURNING sku), d AS (DELETE FROM items WHERE sku IN (SELECT sku FROM i)) SELECT 1
WITH orders AS (SELECT 1 AS id) DELETE FROM orders WHERE id IN (SELECT id FROM orders)
WITH stock AS (SELECT 'a' AS sku) INSERT INTO stock SELECT sku, 1 FROM stock
WITH stock AS (SELECT 'a' AS sku) UPDATE stock SET qty = 1 FROM stock AS s WHERE s.sku = stock.sku
INSERT INTO stock VALUES ('x', 1)
INSERT INTO stock (sku, qty) VALUES ('x', 1), ('y', 2), ('z', DEFAULT)
INSERT INTO sales.targets DEFAULT VALUES
INSERT INTO archive.orders_2020 SELECT * FROM orders WHERE created < '2021-01-01'
INSERT INTO orders (id, total) SELECT id + 100, (SELECT max(amount) FROM sales.targets) FROM sales.orders
INSERT INTO stock VALUES ('x', (SELECT count(*) FROM items))
INSERT INTO stock AS s VALUES ('x', 1) ON CONFLICT (sku) DO UPDATE SET qty = s.qty + excluded.qty
INSERT INTO stock VALUES ('x', 1) ON CONFLICT DO NOTHING
INSERT INTO stock VALUES ('x', 1) ON CONFLICT (sku) DO UPDATE SET qty = (SELECT max(qty) FROM items) WHERE stock.qty < 5
INSERT INTO orders (id) VALUES (50) RETURNING id, (SELECT name FROM customers LIMIT 1)
INSERT INTO orders SELECT * FROM orders WHERE false
INSERT INTO measurements VALUES (1, '2020-01-01', 3)
INSERT INTO orders WITH c AS (SELECT * FROM archive.orders_2020) SELECT * FROM c
INSERT INTO orders TABLE sales.orders
UPDATE orders SET status = 'done'
UPDATE ONLY orders AS o SET status = 'done' WHERE o.id = 3
UPDATE orders SET total = i.price FROM items i WHERE i.order_id = orders.id
UPDATE orders o SET total = x.t FROM (SELECT order_id, sum(price) AS t FROM items GROUP BY 1) x JOIN customers c ON true WHERE x.order_id = o.id
UPDATE orders SET total = (SELECT sum(price) FROM items WHERE order_id = orders.id)
UPDATE orders SET (total, status) = (SELECT amount, region FROM sales.targets LIMIT 1) WHERE id = 1
UPDATE orders SET total = o2.total FROM orders o2 WHERE o2.id = orders.id + 1
UPDATE orders SET note = 'x' WHERE customer_id = ANY (ARRAY(SELECT id FROM customers)) RETURNING *
UPDATE sales.orders SET total = 0 WHERE id IN (SELECT id FROM orders)
DELETE FROM orders
DELETE FROM ONLY sales.orders WHERE id = 1
DELETE FROM orders USING customers c, items WHERE c.id = orders.customer_id AND items.order_id = orders.id
DELETE FROM orders WHERE id IN (SELECT order_id FROM items) RETURNING (SELECT count(*) FROM customers)
DELETE FROM orders o USING orders o2 WHERE o.id < o2.id
MERGE INTO stock s USING items i ON s.sku = i.sku WHEN MATCHED THEN UPDATE SET qty = i.qty WHEN NOT MATCHED THEN INSERT VALUES (i.sku, i.qty)
MERGE INTO stock USING (SELECT sku, sum(qty) AS q FROM items GROUP BY sku) i ON stock.sku = i.sku WHEN MATCHED AND stock.qty < 1 THEN DELETE
MERGE INTO orders o USING sales.orders s ON o.id = s.id WHEN MATCHED AND EXISTS (SELECT FROM customers) THEN DO NOTHING
WITH src AS (SELECT * FROM items) MERGE INTO stock s USING src ON s.sku = src.sku WHEN NOT MATCHED THEN INSERT VALUES (src.sku, 1)
MERGE INTO stock a USING stock b ON a.sku = b.sku WHEN MATCHED THEN UPDATE SET qty = 1
COPY orders TO STDOUT
COPY orders (id, total) TO STDOUT WITH (FORMAT csv, HEADER)
COPY (SELECT o.id FROM orders o JOIN customers c ON true) TO STDOUT
COPY (WITH x AS (SELECT * FROM items) SELECT * FROM x) TO STDOUT
COPY (DELETE FROM orders RETURNING *) TO STDOUT
COPY (INSERT INTO stock SELECT sku, 1 FROM items RETURNING *) TO STDOUT
COPY stock FROM STDIN
COPY sales.targets (region, amount) FROM STDIN WITH (FORMAT csv)
COPY measurements FROM STDIN
TRUNCATE orders
TRUNCATE TABLE orders, ONLY sales.orders, "Orders"
TRUNCATE items RESTART IDENTITY CASCADE
CREATE TABLE fresh (id int)
CREATE TABLE IF NOT EXISTS sales.fresh (id int PRIMARY KEY, note text DEFAULT 'FROM customers')
CREATE TEMP TABLE scratch (id int)
CREATE UNLOGGED TABLE fresh AS SELECT * FROM orders
CREATE TABLE fresh AS TABLE customers
CREATE TABLE fresh AS WITH x AS (SELECT * FROM orders) SELECT x.id FROM x JOIN items ON true WITH NO DATA
CREATE TEMP TABLE scratch ON COMMIT DROP AS SELECT * FROM sales.targets
SELECT * INTO fresh FROM orders JOIN customers USING (id)
SELECT id INTO TEMP scratch FROM customers
WITH x AS (SELECT * FROM orders) SELECT id INTO fresh FROM x
CREATE TABLE fresh (LIKE orders INCLUDING ALL)
CREATE TABLE fresh (id int, order_id int REFERENCES orders (id), FOREIGN KEY (id) REFERENCES customers (id))
CREATE TABLE fresh () INHERITS (orders)
CREATE TABLE measurements_2 PARTITION OF measurements FOR VALUES IN (2)
CREATE VIEW v AS SELECT o.id FROM orders o JOIN customers c ON true
CREATE OR REPLACE TEMP VIEW v AS WITH orders AS (SELECT * FROM items) SELECT * FROM orders
CREATE MATERIALIZED VIEW mv AS SELECT count(*) FROM orders, sales.orders s
CREATE INDEX ON orders (customer_id)
CREATE UNIQUE INDEX some_name ON sales.orders USING btree (lower(status)) WHERE total > 5
ALTER TABLE orders ADD COLUMN extra int DEFAULT 5
ALTER TABLE IF EXISTS ONLY sales.orders ALTER COLUMN note SET NOT NULL, DROP COLUMN status
ALTER TABLE items ADD FOREIGN KEY (order_id) REFERENCES orders (id)
ALTER TABLE measurements ATTACH PARTITION loose FOR VALUES IN (7)
ALTER TABLE orders RENAME COLUMN note TO remark
ALTER TABLE archive.orders_2020 INHERIT orders
DROP TABLE items
DROP TABLE IF EXISTS orders, sales.targets CASCADE
LOCK TABLE orders, customers IN SHARE MODE
LOCK sales.orders
ANALYZE orders
ANALYZE VERBOSE orders (id), customers
REINDEX TABLE orders
CLUSTER orders USING orders_pkey
COMMENT ON TABLE orders IS 'FROM customers'
COMMENT ON COLUMN sales.orders.total IS 'x'
CREATE TRIGGER t BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()
CREATE RULE r AS ON DELETE TO orders DO INSTEAD NOTHING
CREATE POLICY p ON orders USING (EXISTS (SELECT FROM customers WHERE id = customer_id))
CREATE STATISTICS st ON id, total FROM orders
EXPLAIN SELECT * FROM orders JOIN customers ON true
EXPLAIN DELETE FROM orders WHERE id IN (SELECT order_id FROM items)
EXPLAIN (VERBOSE, FORMAT JSON) INSERT INTO stock SELECT sku, 1 FROM items
EXPLAIN ANALYZE SELECT * FROM orders
EXPLAIN ANALYZE DELETE FROM orders USING items WHERE false
EXPLAIN (ANALYZE, COSTS OFF) UPDATE orders SET total = 1
EXPLAIN (ANALYZE true) WITH d AS (DELETE FROM items RETURNING *) SELECT * FROM d
EXPLAIN (ANALYZE 1) INSERT INTO stock VALUES ('q', 1)
PREPARE p AS SELECT * FROM orders WHERE id = $1
PREPARE q (int) AS UPDATE orders SET total = $1 FROM items
DECLARE c CURSOR FOR SELECT * FROM orders JOIN items ON true
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT * FROM customers
SELECT 1; SELECT * FROM orders; DELETE FROM items
INSERT INTO stock VALUES ('m', 1); UPDATE stock SET qty = 2 WHERE sku = 'm'; SELECT * FROM stock
BEGIN
SET LOCAL search_path TO sales
SHOW search_path
SAVEPOINT a
SELECT * FROM orders WHERE id IN (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
SELECT * FROM orders WHERE (id, status) IN ((1, 'a'), (2, 'b'), (3, 'c'))
SELECT (DATE '2020-01-01', DATE '2020-02-01') OVERLAPS (DATE '2020-01-15', DATE '2020-03-01') FROM customers
SELECT * FROM orders WHERE (timestamptz '2020-01-01', interval '1 day') OVERLAPS (timestamptz '2020-01-01', timestamptz '2020-01-03')
SELECT note COLLATE "C" FROM orders o WHERE o.created AT TIME ZONE 'UTC' > '2020-01-01'
SELECT payload -> 'a' ->> 'b', payload #>> '{a,b}', payload @> '{}' FROM events
SELECT a.*, b.x FROM orders a, jsonb_to_record('{}') AS b(x int)
