"""A client that speaks the protocol by hand: what is allowed, and what libraries do not send."""

from __future__ import annotations

import socket
import struct
import sys
import time

READY = ord("Z")


def message(kind: str, body: bytes = b"") -> bytes:
    """Return a message."""
    return kind.encode() + struct.pack(">I", len(body) + 4) + body


def packet(code: int, body: bytes = b"") -> bytes:
    """Return a packet without type."""
    return struct.pack(">II", len(body) + 8, code) + body


def z(text: str) -> bytes:
    """Return a text with its NUL."""
    return text.encode() + b"\0"


def parse(name: str, text: str, *oids: int) -> bytes:
    """Return a Parse."""
    return message("P", z(name) + z(text) + struct.pack(f">h{len(oids)}I", len(oids), *oids))


def bind(portal: str, name: str, *values: bytes | None) -> bytes:
    """Return a Bind of values in text format."""
    packed = b"".join(struct.pack(">i", -1) if v is None else struct.pack(">i", len(v)) + v for v in values)
    return message("B", z(portal) + z(name) + struct.pack(">hh", 0, len(values)) + packed + struct.pack(">h", 0))


def execute(portal: str = "", rows: int = 0) -> bytes:
    """Return an Execute."""
    return message("E", z(portal) + struct.pack(">i", rows))


def column(row: bytes, number: int) -> str:
    """Return a column of a DataRow's values."""
    for _ in range(number):
        row = row[4 + struct.unpack_from(">i", row)[0] :]
    return row[4 : 4 + struct.unpack_from(">i", row)[0]].decode()


SYNC = message("S")
FLUSH = message("H")


class Client:
    """One connection."""

    def __init__(self, port: int, *packets: int, **parameters: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.buffer = b""
        self.key = b""
        self.row = b""
        for code in packets:
            self.send(packet(code))
            if self.socket.recv(1) != b"N":
                return
        parameters = {"user": "postgres", "database": "postgres"} | parameters
        body = b"".join(z(k) + z(v) for k, v in parameters.items())
        self.send(packet(3 << 16, body + b"\0"))
        self.until_ready()

    def send(self, *messages: bytes) -> None:
        """Send messages in one piece."""
        self.socket.sendall(b"".join(messages))

    def until(self, kinds: str) -> int:
        """Read until one of the kinds; return it (0: the end of the connection)."""
        while True:
            while len(self.buffer) >= 5:
                length = struct.unpack_from(">I", self.buffer, 1)[0] + 1
                if len(self.buffer) < length:
                    break
                one, self.buffer = self.buffer[:length], self.buffer[length:]
                if one[:1] == b"K":
                    self.key = one[5:]
                if one[:1] == b"D":
                    self.row = one[7:]
                if one[:1] in kinds.encode():
                    return one[0]
            data = self.socket.recv(65536)
            if not data:
                return 0
            self.buffer += data

    def until_ready(self, times: int = 1) -> None:
        """Read until so many ReadyForQuery."""
        for _ in range(times):
            self.until("Z")

    def close(self) -> None:
        """End the connection in order."""
        self.send(message("X"))
        self.socket.close()


def main() -> None:  # noqa: PLR0915 - a list of things to do
    """Do everything once, on a few connections."""
    port = int(sys.argv[1])
    c = Client(port, 80877103, application_name="raw äö")
    c.send(message("Q", z("create table r (a int primary key, b int)")))
    c.until_ready()
    c.send(message("Q", z("create table d (a int references r deferrable initially deferred)")))
    c.until_ready()
    # Suspended portals: asked again, closed, ended by their transaction, bound anew.
    c.send(parse("s", "select generate_series(1, 10)"), bind("p", "s"), execute("p", 3), execute("p", 3))
    c.send(execute("p", 100), SYNC)
    c.until_ready()
    c.send(message("Q", z("begin")))
    c.until_ready()
    c.send(bind("p", "s"), execute("p", 2), SYNC)
    c.until_ready()
    c.send(message("Q", z("select 'between'")))
    c.until_ready()
    c.send(execute("p", 2), message("C", b"P" + z("p")), SYNC)
    c.until_ready()
    c.send(bind("", "s"), execute("", 2), bind("", "s"), execute("", 0), SYNC)
    c.until_ready()
    c.send(message("Q", z("commit")))
    c.until_ready()
    c.send(bind("", "s"), execute("", 4), SYNC)
    c.until_ready()
    # An error at Sync: the deferred constraint of an implicit transaction.
    c.send(parse("", "insert into d values ($1)"), bind("", "", b"5"), execute(), SYNC)
    c.until_ready()
    c.send(parse("", "insert into r values ($1, 1)"), bind("", "", b"1"), execute())
    c.send(parse("", "insert into d values ($1)"), bind("", "", b"6"), execute(), SYNC)
    c.until_ready()
    # What follows an error is skipped, also what comes later, and simple queries too.
    c.send(parse("", "select 1/$1", 23), bind("", "", b"0"), execute(), FLUSH)
    c.until("E")
    c.send(parse("later", "select 'later'"), bind("", "later"), execute(), message("Q", z("select 'skipped'")))
    time.sleep(0.05)
    c.send(SYNC, parse("", "select 'after'"), bind("", ""), execute(), SYNC)
    c.until_ready(2)
    # A Parse that fails under a name that exists does not change what the name means.
    c.send(parse("s", "select 'another'"), SYNC, bind("", "s"), execute(), SYNC)
    c.until_ready(2)
    c.send(bind("", "no such statement"), execute(), SYNC)
    c.until_ready()
    c.send(message("D", b"S" + z("no such statement")), SYNC)
    c.until_ready()
    c.send(parse("", "selec 'wrong'"), SYNC)
    c.until_ready()
    c.send(parse("", "select $1::int", 25), bind("", "", b"not a number"), message("D", b"P\0"), execute(), SYNC)
    c.until_ready()
    c.send(parse("n", "select $1::int"), SYNC, bind("", "n", b"x"), execute(), bind("", "n", b"y"), execute(), SYNC)
    c.until_ready(2)
    # COPY in by the extended protocol: a Sync within is never answered.
    c.send(parse("", "copy r from stdin"), bind("", ""), execute(), SYNC)
    c.until("G")
    c.send(message("d", b"10\t1\n11\t1\n"), message("d", b"12\t1\n"), message("c"), SYNC)
    c.until_ready()
    c.send(parse("", "copy r from stdin"), bind("", ""), execute(), SYNC)
    c.until("G")
    c.send(message("d", b"20\t1\n"), message("f", z("no more")), SYNC)
    c.until_ready()
    c.send(parse("", "copy r from stdin"), bind("", ""), execute(), SYNC)
    c.until("G")
    c.send(message("d", b"wrong\n"))
    c.until("E")
    c.send(message("d", b"30\t1\n"), message("c"), SYNC)
    c.until_ready()
    c.send(parse("", "copy r from stdin"), bind("", ""), execute(), SYNC, SYNC)
    c.send(message("d", b"wrong\n"), message("c"), SYNC, message("Q", z("select 'after copies'")))
    c.until_ready(2)
    c.send(parse("", "copy r to stdout"), bind("", ""), execute(), SYNC)
    c.until_ready()
    c.send(parse("", "copy missing from stdin"), bind("", ""), execute(), SYNC)
    c.until_ready()
    # A simple COPY, everything sent at once; two copies in one Query.
    c.send(message("Q", z("copy r from stdin")), message("d", b"40\t1\n"), message("c"), message("Q", z("select 40")))
    c.until_ready(2)
    c.send(message("Q", z("copy r from stdin; copy d from stdin; select 'third'")))
    c.until("G")
    c.send(message("d", b"50\t1\n51\t2\n"), message("c"))
    c.until("G")
    c.send(message("d", b"50\n"), message("c"))
    c.until_ready()
    # Several simple queries sent at once, and a function call.
    c.send(message("Q", z("select 'first'")), message("Q", z("select 'second'; select 1/0; select 'never'")))
    c.send(message("Q", z("")), message("Q", z("select 'last'")))
    c.until_ready(4)
    c.send(message("F", struct.pack(">IhhhiIh", 31, 0, 0, 0, 0, 0, 0)[:10] + struct.pack(">hh", 0, 0)))
    c.until_ready()
    c.send(parse("", ""), bind("", ""), execute(), SYNC)
    c.until_ready()
    c.close()
    # A pipeline with a Sync for each, sent as fast as it goes.
    c = Client(port, 80877103)
    c.send(parse("i", "select $1::int, $2::text", 23, 25), SYNC)
    for i in range(300):
        values = (b"%d" % i if i % 7 else b"x", None if i % 5 else b"text %d" % i)
        c.send(bind("", "i", *values), execute(), SYNC)
    c.until_ready(301)
    # Cancelled by another connection.
    c.send(message("Q", z("select pg_sleep(10)")))
    time.sleep(0.1)
    with socket.create_connection(("127.0.0.1", port)) as other:
        other.sendall(packet(80877102, c.key))
        other.recv(1)
    c.until_ready()
    c.close()
    # A newer protocol than the server's, and a parameter that it does not know.
    c = Client(port, **{"_pq_.unknown": "1", "options": "-c statement_timeout=10000"})
    c.send(message("Q", z("select 'negotiated'")))
    c.until_ready()
    # No message at all: the server ends the connection.
    c.send(b"\xff\xff\xff\xff\xff\xff\xff\xff")
    c.until("")
    Client(port, 80877104).socket.close()  # Debian's server takes GSSAPI encryption
    c = Client(port, replication="true")
    c.send(message("Q", z("IDENTIFY_SYSTEM")))
    c.until_ready()
    c.send(message("Q", z(f"START_REPLICATION PHYSICAL {column(c.row, 2)}")))  # from the end: nothing to copy
    if c.until("WE") == ord("W"):
        c.send(message("c"))
        c.until_ready()
    c.send(message("Q", z("SHOW server_version")))
    c.until_ready()
    c.close()


if __name__ == "__main__":
    main()
