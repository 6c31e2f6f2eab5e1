-- a script for psql
drop table if exists orders, items;
create table orders (id int primary key, note text, amount numeric(12,2));
create table items (id int, order_id int references orders deferrable initially deferred);
insert into orders select i, 'note ' || i, i * 1.5 from generate_series(1, 500) i;
\copy orders to '/dev/null'
\copy (select id, note from orders where id < 100) to '/dev/null' with csv
\copy items from program 'seq 1 20 | sed "s/$/\\t1/"'
\copy items from program 'echo not-a-number'
select count(*) from orders; select E'it''s \'; ok' \; select 2 \; select $tag$;$tag$;
begin;
insert into items values (1, 999);
commit;
select * from missing_table;
select 'ünïcode ⇒ 🐘';
create or replace function f() returns int language sql begin atomic; select 1; select case when true then 2 end; end;
create function g() returns int language plpgsql as $$ begin perform 1; return 2; end; $$;
select f(), g();
do $$ begin raise notice 'hello; %', 1; end $$;
\set FETCH_COUNT 50
select * from orders order by id;
\unset FETCH_COUNT
prepare p(int) as select * from orders where id = $1;
execute p(5);
deallocate p;
explain analyze select * from orders;
show server_version;
listen channel;
notify channel, 'payload';
set standard_conforming_strings = off;
select 'a\';b' \; select 3;
update orders set note = null where id <= 10 returning id;
delete from orders where id > 490;
copy orders to stdout;
vacuum orders;
merge into orders o using (values (1)) v(id) on o.id = v.id when matched then update set note = 'm';
create table copied as select * from orders;
drop table copied;
drop function f(), g();
