"""One HTTP POST that cannot be made to wait, to fill memory or to go elsewhere: a body out, a body in.

What always holds, whatever the other side does:

* all of the answer, headers and body, has come ``timeout_s`` after the beginning, or it is given up; connecting has
  that time for each address of the host;
* no more than ``max_bytes`` of a body are kept;
* nothing but http and https, and no redirect is followed: the answer is that of the address that was configured.

Proxies are those of the environment (``https_proxy``, ``no_proxy``).
"""

from __future__ import annotations

import functools
import http.client
import io
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from agentwatch import __version__

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

SCHEMES = ("http://", "https://")


def post(url: str, body: bytes, content_type: str, *, timeout_s: float, max_bytes: int) -> bytes:
    """Return the body of the answer. Raises OSError, whatever went wrong."""
    if not url.startswith(SCHEMES):
        raise OSError(f"{url} is not an http or https address")
    headers = {"Content-Type": content_type, "User-Agent": f"agentwatch/{__version__}"}
    # Not build_opener(): that follows redirects and opens files.
    opener = urllib.request.OpenerDirector()
    deadline = time.monotonic() + timeout_s
    for handler in (urllib.request.ProxyHandler(), _Http(deadline), _Https(deadline)):
        opener.add_handler(handler)
    try:
        question = urllib.request.Request(url, body, headers)  # noqa: S310 -- the scheme was checked
        with opener.open(question, timeout=timeout_s) as answer:
            if answer.status != http.client.OK:
                raise ConnectionError(f"it answered {answer.status} {answer.reason}"[:200])
            data: bytes = answer.read(max_bytes + 1)
    except (http.client.HTTPException, ValueError) as e:
        raise ConnectionError(f"no HTTP can be spoken with it: {e!r}"[:200]) from e
    if len(data) > max_bytes:
        raise ConnectionError(f"it answered more than {max_bytes} bytes")
    return data


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_timed(http.client.HTTPConnection, self._deadline), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_timed(http.client.HTTPSConnection, self._deadline), req)


def _timed(kind: type[http.client.HTTPConnection], deadline: float) -> Callable[..., Any]:
    def connect(host: str, **options: Any) -> Any:
        connection: Any = kind(host, **options)
        connection.response_class = functools.partial(_Response, deadline)
        return connection

    return connect


class _Response(http.client.HTTPResponse):
    # A socket's timeout is for one read; an answer of a byte now and then would never end.
    def __init__(self, deadline: float, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, deadline))


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        # http.client closes the socket as soon as it has the headers; a file made of it keeps it open.
        self._file = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("its answer took too long")
        self._sock.settimeout(left_s)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()
