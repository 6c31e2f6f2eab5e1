// node's pg over TLS: with_pg.js N. TLS is done in memory by the OpenSSL inside of node, its loop moves the bytes.
"use strict";

const { Client } = require("pg");

const INSERT = "INSERT INTO tls_capture (id, client, note) VALUES ($1, $2, $3)";

async function insert(connection, name, count) {
  for (let number = 0; number < count; number++)
    await connection.query(INSERT, [number, "pg", `pg note ${number} of ${name}`]);
}

async function read(connection, name, count) {
  for (let number = 0; number < 5; number++) {
    const text = `SELECT n, '${name} row ' || n FROM generate_series(1, ${3000 + number}) AS n`;
    const { rows } = await connection.query(text);
    if (rows.length !== 3000 + number) throw new Error(`${rows.length} rows: ${text}`);
  }
  const prepared = { name: `pg_${name}`, text: "SELECT $1::int + 1, 'pg prepared'" };
  for (let number = 0; number < count; number++) await connection.query({ ...prepared, values: [number] });
}

async function large(connection, name) {
  let body = "";
  for (let number = 0; number < 128 * 1024; number++) body += `${name}${String(number).padStart(6, "0")},`;
  for (const result of [
    await connection.query(`SELECT length('${body}') AS length`),
    await connection.query("SELECT length($1::text) AS length", [body]),
  ])
    if (result.rows[0].length !== body.length) throw new Error(`${result.rows[0].length} characters`);
}

async function fail(connection, name) {
  await connection.query(`SELECT 1/0 AS pg_${name}`).catch(() => {});
  await connection.query("BEGIN");
  await connection.query(INSERT, [-1, "pg", `rolled back by ${name}`]);
  await connection.query("ROLLBACK");
  await connection.query(`SELECT 'pg after the rollback of ${name}'`);
}

async function session(name, count) {
  const connection = new Client({ ssl: { rejectUnauthorized: false } });
  await connection.connect();
  await insert(connection, name, count);
  await read(connection, name, count);
  await large(connection, name);
  await fail(connection, name);
  await connection.end();
}

async function main(count) {
  await Promise.all([session("a", count), session("b", count)]);
}

main(Number(process.argv[2])).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
