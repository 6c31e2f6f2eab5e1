"""Record what a real PostgreSQL locks for each statement of ``sql/corpus.sql``: the truth of test_sql_against_server.

Run by hand when the corpus changes (as root or as a user who may own a server):
``python tests/golden/record_sql.py [BINDIR]``. It starts a server of its own on a temporary folder and a Unix socket,
runs each statement in a transaction that it rolls back, and writes ``sql/truth.json``: for each statement the server's
command tags and, from pg_locks, each table the session holds a lock on, with the modes. Locks stand for touching: the
server takes AccessShareLock or RowShareLock on what a statement reads and a stronger mode on what it writes, and before
any planning, so that nothing is optimised away. A partition is left out: the server reaches it through its parent.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

FOLDER = Path(__file__).parent / "sql"
BINDIR = "/usr/lib/postgresql/15/bin"
RELATIONS = """
SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname <> 'measurements_1'
"""
LOCKS = """
SELECT relation, mode FROM pg_locks
WHERE locktype = 'relation' AND pid = %s AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def main() -> None:
    """Start the server, run the corpus, write the truth."""
    bindir = Path(sys.argv[1] if len(sys.argv) > 1 else BINDIR)
    folder = Path(tempfile.mkdtemp(prefix="record-sql-"))
    as_owner: list[str] = []
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_owner = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    data = folder / "data"
    initdb = [
        str(bindir / "initdb"),
        "-D",
        str(data),
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
    ]
    subprocess.run([*as_owner, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    control = [*as_owner, str(bindir / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    try:
        truth = record(f"host={folder} user=postgres dbname=postgres")
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        shutil.rmtree(folder)
    (FOLDER / "truth.json").write_text(json.dumps(truth, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(truth)} statements recorded")  # noqa: T201 -- a script


def record(conninfo: str) -> list[dict[str, object]]:
    """Return the truth of each statement of the corpus, in its order."""
    with psycopg.connect(conninfo, autocommit=True) as setup:
        setup.execute((FOLDER / "schema.sql").read_bytes())
    statements = (FOLDER / "corpus.sql").read_text(encoding="utf-8").splitlines()
    truth: list[dict[str, object]] = []
    refused: list[str] = []
    for statement in statements:
        try:
            truth.append(run(conninfo, statement))
        except psycopg.Error as e:
            refused.append(f"{statement}\n    {e}")
    if refused:
        sys.exit("the server refused these: correct the corpus\n" + "\n".join(refused))
    return truth


def run(conninfo: str, statement: str) -> dict[str, object]:
    """Run one statement, roll it back, and return its tags and locks."""
    with psycopg.connect(conninfo, autocommit=True) as session, psycopg.connect(conninfo, autocommit=True) as observer:
        # Tables that the statement drops have no name afterwards, those that it makes had none before.
        names = {oid: (schema, name) for oid, schema, name in observer.execute(RELATIONS)}
        session.execute("BEGIN")
        tags = execute(session, statement)
        locks = observer.execute(LOCKS, [session.info.backend_pid]).fetchall()
        own = {oid: (schema, name) for oid, schema, name in session.execute(RELATIONS)}
        session.execute("ROLLBACK")
    modes: dict[str, list[str]] = {}
    for oid, mode in locks:
        # A rewritten table keeps its oid, so a table has one name, the later one if it was renamed.
        if oid in names or oid in own:
            schema, name = names.get(oid) or own[oid]
            modes.setdefault(json.dumps([schema, name], ensure_ascii=False), []).append(mode)
    return {
        "statement": statement,
        "tags": tags,
        "locks": [[*json.loads(table), sorted(found)] for table, found in sorted(modes.items())],
    }


def execute(session: psycopg.Connection[tuple[object, ...]], statement: str) -> list[str]:
    """Run a text and return its command tags."""
    cursor = session.cursor()
    if statement.startswith("COPY"):
        with cursor.copy(statement.encode()) as copy:
            if " FROM STDIN" not in statement:
                for _ in copy:
                    pass
        return [cursor.statusmessage or ""]
    cursor.execute(statement.encode())
    tags = [cursor.statusmessage or ""]
    while cursor.nextset():
        tags.append(cursor.statusmessage or "")
    return tags


if __name__ == "__main__":
    main()
