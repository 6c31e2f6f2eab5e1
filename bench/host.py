"""Where it is measured: a user of its own, a PostgreSQL server, and instances of agentwatch, each for one section."""

from __future__ import annotations

import contextlib
import pwd
import subprocess
import uuid
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.fix_postgres import PostgresServer
from tests.kernel.fix_tls import self_signed
from tests.kernel.fix_watch import SCANNED, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SETTINGS = {
    "synchronous_commit": "off",
    "autovacuum": "off",
    "ssl": "on",
    "ssl_min_protocol_version": "TLSv1.3",
}


class Server(PostgresServer):
    """A server that logs nothing; the transport ``tls`` is TCP where the client insists on TLS, which is 1.3."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)

    def furnish(self) -> None:
        """Make the key and the certificate, where and as whom the server looks for them."""
        self_signed(self.data, user="postgres", group="postgres", extra_groups=[])

    def host(self, transport: str) -> str:
        """Return the host for ``tcp``, ``tls`` or ``unix``."""
        return super().host("tcp" if transport == "tls" else transport)

    def environment(self, transport: str) -> dict[str, str]:
        """Return the variables that point libpq's programs at this server."""
        return super().environment(transport) | {"PGSSLMODE": "require" if transport == "tls" else "disable"}


class Host(NamedTuple):
    """The agent's user, also outside of the watch, and the server."""

    user: str
    uid: int
    server: Server

    @contextlib.contextmanager
    def idle(self, *, first_use: str = "declare", scan: Sequence[str] = SCANNED) -> Iterator[Watch]:
        """Yield an instance of which nothing is loaded yet."""
        watch = Watch(self.user, first_use=first_use, scan=scan)
        try:
            yield watch
        finally:
            watch.stop()

    @contextlib.contextmanager
    def watching(self, *, first_use: str = "declare") -> Iterator[Watch]:
        """Yield an instance that records."""
        with self.idle(first_use=first_use) as watch:
            watch.start()
            yield watch


@contextlib.contextmanager
def prepared() -> Iterator[Host]:
    """Make the user and the server, and remove both."""
    user = f"awbench-{uuid.uuid4().hex[:8]}"
    subprocess.run(["/usr/sbin/useradd", "--system", "--no-create-home", "--shell", "/bin/sh", user], check=True)
    server = Server()
    try:
        server.start()
        yield Host(user, pwd.getpwnam(user).pw_uid, server)
    finally:
        server.stop()
        subprocess.run(["/usr/sbin/userdel", user], check=True)
