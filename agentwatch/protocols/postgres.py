"""The PostgreSQL v3 protocol, both directions in, statements out; see ``base.Decoder`` for the rules that hold.

This file joins the parts: startup packets, framing, pairing, and what happens where bytes are missing. It also says
when a connection cannot be read (TLS, GSSAPI encryption, protocol 2) and when it is none.

Where bytes of the server are missing, all that waited for an answer comes out unknown. Pairing goes on where the
client begins to speak and the last six bytes of the server are a ReadyForQuery: there both directions are at a
boundary. Where bytes of the client are missing the same place is waited for, and prepared statements are marked as
possibly stale. A client that was seen to pipeline proves nothing by speaking: it is paired again only when the count
of ReadyForQuery shows that nothing is owed, and after missing requests, which nobody can count, not at all. A gap of
known length inside rows, COPY data or the text of a statement loses nothing but those bytes.

Specification: PostgreSQL documentation, chapter "Frontend/Backend Protocol" (3.0 to 3.2).
"""

from __future__ import annotations

from agentwatch.protocols import postgres_startup as startup
from agentwatch.protocols.base import Direction, Instant, Message, Opaque, Opened, Request, Skipped
from agentwatch.protocols.postgres_frames import BROKEN, Frames
from agentwatch.protocols.postgres_pairing import Pairing

_ANSWERS = {startup.SSL_REQUEST: (b"S", "tls"), startup.GSSENC_REQUEST: (b"G", "gssenc")}
_READY = (b"Z\0\0\0\5I", b"Z\0\0\0\5T", b"Z\0\0\0\5E")
_ATTRIBUTES = {"application_name": "postgresql.application_name", "replication": "postgresql.replication"}


class PostgresDecoder:
    """One connection of a client to a PostgreSQL server; ``joined`` if its beginning was not seen."""

    name = "postgresql"

    def __init__(self, *, joined: bool = False) -> None:
        self._client = Frames(Direction.OUT)
        self._server = Frames(Direction.IN, framed=not joined)
        self._pairing = Pairing(joined=joined)
        self._packet: bytearray | None = None if joined else bytearray()
        self._asked: list[int] = []
        self._exact = not joined
        self._heard = False  # the server has spoken since the client did
        self._over = False

    def feed(self, direction: Direction, data: bytes, at: Instant) -> list[Message]:
        """Take the next bytes of one direction; return what became complete by them."""
        out: list[Message] = []
        if self._over or not data:
            return out
        if direction:
            self._answered(data, at, out)
        else:
            self._asks(data, at, out)
        return out

    def _answered(self, data: bytes, at: Instant, out: list[Message]) -> None:
        if self._asked:
            data = self._encryption_answer(data, at, out)
        if data:
            self._heard = True
            self._pairing.heard()
        frames = self._server.feed(data)
        if frames:
            self._pairing.answer(frames, at, out)
            if frames[-1][0] == BROKEN:
                self._broken(at, out)

    def _asks(self, data: bytes, at: Instant, out: list[Message]) -> None:
        if self._packet is not None:
            data = self._startup(data, at, out)
        if self._heard and data:
            self._heard = False
            if not self._pairing.paired:
                self._turn()
        frames = self._client.feed(data)
        if frames:
            self._pairing.ask(frames, at, out)
            if frames[-1][0] == BROKEN:
                self._broken(at, out)

    def skipped(self, run: Skipped, at: Instant) -> list[Message] | None:
        """Take note of rows or COPY data of the server that were not copied; None if the claim does not fit: a gap."""
        out: list[Message] = []
        if self._over:
            return out
        frames = None if self._asked else self._server.skipped(run)
        if frames is None:
            return None
        self._heard = True
        self._pairing.heard()
        self._pairing.answer(frames, at, out)
        return out

    def gap(self, direction: Direction, length: int, at: Instant) -> list[Message]:
        """Take note of missing bytes; see the module's docstring for what is lost by them."""
        out: list[Message] = []
        if self._over:
            return out
        self._exact = False
        if self._packet is not None and direction == Direction.OUT:
            self._client.position += len(self._packet)
            self._packet = None
            self._client.lose()
        if direction == Direction.OUT:
            self._heard = False
            frames = self._client.gap(length)
            if frames is None:
                self._pairing.lose(out, requests_missed=True)
            else:
                self._pairing.ask(list(frames), at, out)
            return out
        self._asked = []
        if self._server.gap(length) is None:
            self._pairing.lose(out)
        return out

    def close(self, at: Instant) -> list[Message]:
        """Take note that the connection ended; return what was still waiting for an outcome."""
        out: list[Message] = []
        if not self._over:
            self._cut_off(at, out)
            self._pairing.close(out)
            self._over = True
        return out

    def _cut_off(self, at: Instant, out: list[Message]) -> None:
        """Deal with a message whose end was not seen: the server may have got it."""
        kept, to_come = self._client.kept, self._client.to_come
        if not to_come:
            return
        cut = self._client.gap(to_come)
        if cut:
            self._pairing.ask([*cut], at, out)
        else:
            out.append(Opaque("not-understood", at, (kept, 0)))

    def _turn(self) -> None:
        """Use that the client begins to speak: where the server was just ready, both are at a boundary."""
        server, client = self._server, self._client
        if not server.framed and server.tail in _READY:
            server.align()
            self._pairing.quiet = True
        if not (self._pairing.quiet and server.at_boundary):
            return
        if self._pairing.repair() or not client.framed:
            client.align()

    def _broken(self, at: Instant, out: list[Message]) -> None:
        """Deal with bytes that are no message: where none were missing, the connection is not PostgreSQL's."""
        if self._exact:
            self._end(out, Opaque("not-understood", at))
        elif not self._client.framed:
            self._pairing.lose(out, requests_missed=True)
        else:
            self._pairing.lose(out)

    def _end(self, out: list[Message], last: Message) -> None:
        self._pairing.close(out)
        out.append(last)
        self._over = True

    def _startup(self, data: bytes, at: Instant, out: list[Message]) -> bytes:
        """Take bytes of startup packets; return those that follow them."""
        packet = self._packet
        if packet is None:
            return data
        packet += data
        while packet:
            length = startup.packet_length(packet)
            if length is None:
                if packet[0] == startup.TLS_HANDSHAKE:
                    self._end(out, Opaque("tls", at, (len(packet), 0)))
                else:
                    self._end(out, Opaque("not-understood", at))
                return b""
            if not length or len(packet) < length:
                return b""
            self._packet_done(bytes(packet[:length]), at, out)
            del packet[:length]
            if self._packet is None:
                return bytes(packet)
        return b""

    def _packet_done(self, packet: bytes, at: Instant, out: list[Message]) -> None:
        offset = self._client.position
        self._client.position += len(packet)
        code = startup.code_of(packet)
        if code in _ANSWERS:
            self._asked.append(code)
            return
        self._packet = None
        if code == startup.CANCEL_REQUEST:
            process = startup.cancelled_process(packet)
            self._end(out, Request("cancel", at, offset, {"postgresql.backend_pid": process}))
            return
        said = startup.startup(packet)
        make = self._pairing.make
        make.user = said.parameters.get("user")
        make.namespace = said.parameters.get("database") or make.user
        attributes: dict[str, str | int | bool] = {"postgresql.protocol_version": said.version}
        attributes |= {key: said.parameters[name] for name, key in _ATTRIBUTES.items() if name in said.parameters}
        out.append(Opened(make.user, make.namespace, attributes))
        self._pairing.started(at, offset)

    def _encryption_answer(self, data: bytes, at: Instant, out: list[Message]) -> bytes:
        """Take the one-byte answers to SSLRequest and GSSENCRequest; return the bytes that follow them."""
        while self._asked and data:
            byte = data[:1]
            if byte == b"E":  # an ErrorResponse: a server that does not know the request, or has no room
                self._asked = []
            elif byte == b"N":
                self._asked.pop(0)
                self._server.position += 1
                data = data[1:]
            else:
                accepted, reason = _ANSWERS[self._asked[0]]
                if byte == accepted:
                    self._end(out, Opaque(reason, at, (0, len(data) - 1)))
                else:
                    self._end(out, Opaque("not-understood", at))
                return b""
        return data
