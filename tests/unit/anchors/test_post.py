"""Asking an authority over HTTP: an honest one, and every way in which one can be a nuisance."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

import pytest

from agentwatch.anchors import timestamp
from agentwatch.anchors.timestamp import TimestampError
from tests.unit.anchors.fix_authority import Authority, Handler, Server, ask_openssl, honest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHORT_S = 0.3
"""For those that would never end."""


def test_answer_of_the_authority_is_returned_as_it_came(authority: Authority, checkpoint: bytes) -> None:
    sent = []

    def behaviour(handler: Handler, body: bytes) -> None:
        sent.append(authority.reply(body))
        handler.answer(sent[0])

    with Server(behaviour) as server:
        response = timestamp.request(checkpoint, server.url)
    assert [response] == sent
    assert timestamp.verify(response, checkpoint, authority.roots)


def test_answer_to_another_question_is_refused(authority: Authority, checkpoint: bytes) -> None:
    replayed = authority.stamp(checkpoint)
    assert timestamp.verify(replayed, checkpoint, authority.roots)
    with Server(lambda handler, _: handler.answer(replayed)) as server, pytest.raises(TimestampError, match="nonce"):
        timestamp.request(checkpoint, server.url)


def test_answer_about_something_else_is_refused(authority: Authority, checkpoint: bytes) -> None:
    def behaviour(handler: Handler, _: bytes) -> None:
        handler.answer(authority.reply(ask_openssl(b"something else")))

    with Server(behaviour) as server, pytest.raises(TimestampError, match="something else"):
        timestamp.request(checkpoint, server.url)


@pytest.mark.parametrize("status", [204, 404, 500, 503])
def test_status_that_is_not_ok_is_no_answer(authority: Authority, checkpoint: bytes, status: int) -> None:
    with (
        Server(lambda handler, body: handler.answer(authority.reply(body), status)) as server,
        pytest.raises(OSError, match=str(status)),
    ):
        timestamp.request(checkpoint, server.url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(authority: Authority, checkpoint: bytes, tmp_path: Path, status: int) -> None:
    stored = tmp_path / "stored.tsr"
    stored.write_bytes(authority.stamp(checkpoint))
    with Server(honest(authority)) as there:
        for place in (f"file://{stored}", there.url):

            def behaviour(handler: Handler, _: bytes, place: str = place) -> None:
                handler.answer(b"", status, Location=place)

            with Server(behaviour) as server, pytest.raises(OSError, match=str(status)):
                timestamp.request(checkpoint, server.url)
        assert not there.asked.acquire(blocking=False)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/", "", "http://", "http://[", "http://a:b/", "http://\u0000/"]
)
def test_address_that_is_none_is_an_error_like_others(checkpoint: bytes, url: str) -> None:
    with pytest.raises(OSError, match=r"."):
        timestamp.request(checkpoint, url)


def test_nobody_listens(checkpoint: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        timestamp.request(checkpoint, f"http://127.0.0.1:{port}/")


def truncated(handler: Handler, body: bytes, authority: Authority) -> None:
    response = authority.reply(body)
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(response)))
    handler.end_headers()
    handler.wfile.write(response[:-1])


def truncated_chunk(handler: Handler, body: bytes, authority: Authority) -> None:
    response = authority.reply(body)
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(response) + response[:-1])


def hangs_up(handler: Handler, _: bytes, __: Authority) -> None:
    handler.close_connection = True


def speaks_something_else(handler: Handler, _: bytes, __: Authority) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")


@pytest.mark.parametrize("behaviour", [truncated, truncated_chunk, hangs_up, speaks_something_else])
def test_answer_that_is_not_whole_is_refused(
    authority: Authority, checkpoint: bytes, behaviour: Callable[[Handler, bytes, Authority], None]
) -> None:
    with (
        Server(lambda handler, body: behaviour(handler, body, authority)) as server,
        pytest.raises((OSError, TimestampError)),
    ):
        timestamp.request(checkpoint, server.url)


def silent(handler: Handler) -> None:
    handler.released.wait()


def dripping_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.released.wait(SHORT_S / 10):
        handler.wfile.write(b".")


def continuing(handler: Handler) -> None:
    while not handler.released.wait(SHORT_S / 10):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def dripping_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    while not handler.released.wait(SHORT_S / 10):
        handler.wfile.write(b"0")


def dripping_chunks(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while not handler.released.wait(SHORT_S / 10):
        handler.wfile.write(b"1\r\n0\r\n")


@pytest.mark.parametrize("behaviour", [silent, dripping_headers, continuing, dripping_body, dripping_chunks])
def test_slow_answer_is_given_up(checkpoint: bytes, behaviour: Callable[[Handler], None]) -> None:
    with Server(lambda handler, _: behaviour(handler)) as server:
        with pytest.raises(OSError, match=r"took too long|timed out"):
            timestamp.request(checkpoint, server.url, SHORT_S)
        assert not server.released.is_set()


def test_slow_answer_within_the_time_is_taken(authority: Authority, checkpoint: bytes) -> None:
    def behaviour(handler: Handler, body: bytes) -> None:
        response = authority.reply(body)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(response)))
        handler.end_headers()
        for at in range(0, len(response), 100):
            handler.wfile.write(response[at : at + 100])
            handler.released.wait(0.01)

    with Server(behaviour) as server:
        response = timestamp.request(checkpoint, server.url)
    assert timestamp.verify(response, checkpoint, authority.roots)


@pytest.mark.parametrize("announced", [True, False])
def test_huge_answer_is_not_read(checkpoint: bytes, *, announced: bool) -> None:
    sent: list[int] = []

    def behaviour(handler: Handler, _: bytes) -> None:
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        for count in itertools.count():
            if handler.released.is_set():
                return
            sent[:] = [count]
            handler.wfile.write(bytes(65536))

    with Server(behaviour) as server, pytest.raises(OSError, match="more than 65536 bytes"):
        timestamp.request(checkpoint, server.url)
    assert sent[0] < 1024, "what was sent beyond the limit is what sockets buffer"
