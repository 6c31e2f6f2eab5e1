"""What the demo's agent was asked to do: fill orders.region, in batches, from a list of countries.

An ordinary script: psql over the Unix socket to look, psycopg over TCP to write. It meets an error on its way (a
region that the table's constraint refuses), corrects its list and tries that batch again.
"""

from __future__ import annotations

import os
import subprocess

import psycopg

BATCH = 100
REGIONS = {"AT": "EMEA", "BR": "LATAM", "DE": "EMEA", "JP": "APAC", "US": "AMER"}


def ask_psql(question: str) -> str:
    """Ask over the Unix socket, the way a person at a shell would."""
    words = ["psql", "-h", os.environ["PGSOCKETDIR"], "-XAtc", question]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def load_regions(connection: psycopg.Connection) -> None:
    """Put the list of countries into a table of its own."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE region_of (country text PRIMARY KEY, region text NOT NULL)")
        with cursor.copy("COPY region_of (country, region) FROM STDIN") as copy:
            for row in REGIONS.items():
                copy.write_row(row)


def fill(connection: psycopg.Connection, first: int, last: int) -> int:
    """Fill one batch of orders; return how many rows changed."""
    with connection.transaction():
        return connection.execute(
            "UPDATE orders SET region = r.region FROM region_of AS r"
            " WHERE r.country = orders.country AND orders.region IS NULL AND orders.id BETWEEN %s AND %s",
            (first, last),
        ).rowcount


def main() -> None:
    """Run the backfill."""
    print("to do:", ask_psql("SELECT count(*) FROM orders WHERE region IS NULL"))
    with psycopg.connect(autocommit=True) as connection:
        load_regions(connection)
        row = connection.execute("SELECT max(id) FROM orders").fetchone()
        for first in range(1, (row[0] if row else 0) + 1, BATCH):
            try:
                changed = fill(connection, first, first + BATCH - 1)
            except psycopg.errors.CheckViolation as e:
                print("refused:", e.diag.message_primary)
                connection.execute("UPDATE region_of SET region = %s WHERE country = %s", ("AMER", "BR"))
                changed = fill(connection, first, first + BATCH - 1)
            print(f"orders {first} to {first + BATCH - 1}: {changed} rows")
    print("left:", ask_psql("SELECT count(*) FROM orders WHERE region IS NULL"))


if __name__ == "__main__":
    main()
