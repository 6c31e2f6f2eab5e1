"""The hello messages of a TLS handshake: payload of handshake records in, what a connection says about itself out.

Of a ClientHello come a ``Hello`` (server name, ALPN, versions), of a ServerHello a ``Chosen`` (version, cipher suite),
and of that how many bytes a record has more than its plaintext. Nothing here raises or reads beyond a length that was
told: a message whose fixed part does not fit is None, and extensions count up to the first that does not fit. Of
extensions that occur twice the first counts. A message longer than ``MAX_HELLO_BYTES`` is not kept.

Specification: RFC 8446, sections 4.1.2, 4.1.3, 4.2.1 and 5.2; RFC 5246, sections 6.2.3 and 7.4.1; RFC 6066, section 3
(server name); RFC 7301, section 3.1 (ALPN); the names are those of IANA's registry "TLS Cipher Suites".
"""

from __future__ import annotations

from typing import NamedTuple

MAX_HELLO_BYTES = 16 * 1024
"""Of one message. A ClientHello with post-quantum key shares has about 2 KiB; of a longer one than this nothing is
known."""
MAX_NAME_BYTES = 255
"""Of a server name (RFC 1035, section 2.3.4); the rest of a longer one is dropped."""
MAX_ALPN_NAMES = 16
"""Browsers offer two or three; further ones are dropped."""

CLIENT_HELLO, SERVER_HELLO = 1, 2
TLS_1_3 = "1.3"
_HEADER_BYTES = 4
_RANDOM_BYTES = 32
_SERVER_NAME, _ALPN, _ENCRYPT_THEN_MAC, _SUPPORTED_VERSIONS = 0, 16, 22, 43
_HOST_NAME = 0
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a HelloRetryRequest: the SHA-256 of that word."""
_VERSION_NAMES = {0x0300: "ssl3", 0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: TLS_1_3}
_WITHOUT_IV = ("ssl3", "1.0")
_CBC_AS_A_WHOLE = ("1.1", "1.2")
CBC_BLOCK_BYTES = 16
"""The larger of the two that there are; the other one divides it."""


class Hello(NamedTuple):
    """What a client asked for.

    Names are text with what is not ASCII as backslash escapes, and may hold control characters. ``server_name`` is None
    where none was given; ``versions`` are the code points of supported_versions, else the one of the message's own.
    """

    server_name: str | None
    alpn: tuple[str, ...]
    versions: tuple[int, ...]


class Chosen(NamedTuple):
    """What a server chose.

    ``version`` is ``1.3``, ``1.2``, ``1.1``, ``1.0`` or ``ssl3``, ``cipher`` IANA's name; both are ``0x`` and four
    digits where the number is not known here.
    """

    version: str
    cipher: str
    encrypt_then_mac: bool = False


class Overhead(NamedTuple):
    """How many bytes the payload of a record has more than its plaintext."""

    least: int
    most: int


_Part = tuple[int, int, int]
"""Of a record's payload: what is before the plaintext and of what is behind it the MAC or tag, then the block to whose
length CBC pads (with 1 byte up to that many)."""
_SUITES_1_3: dict[str, _Part] = {
    # No nonce is sent, and the content type is encrypted too.
    "_MAGMA_": (0, 1 + 8, 0),
    "_CCM_8_": (0, 1 + 8, 0),
    "TLS_SHA256_SHA256": (0, 1 + 32, 0),
    "TLS_SHA384_SHA384": (0, 1 + 48, 0),
    "TLS_": (0, 1 + 16, 0),
}
_SUITES_1_2: dict[str, _Part] = {
    "_CCM_8": (8, 8, 0),
    "_CCM": (8, 16, 0),
    "_GCM_": (8, 16, 0),
    "_CHACHA20_": (0, 16, 0),
    "_3DES_EDE_CBC_SHA": (8, 20, 8),
    "_CBC_SHA384": (16, 48, 16),
    "_CBC_SHA256": (16, 32, 16),
    "_CBC_SHA": (16, 20, 16),
}
"""The first part of a suite's name that is found decides (RFC 5246, 5288, 6655, 7905; encrypt-then-MAC, RFC 7366, has
the same lengths)."""
_LARGEST_1_3, LARGEST_OVERHEAD = (max(map(sum, suites.values())) for suites in (_SUITES_1_3, _SUITES_1_2))

CIPHER_SUITES = {
    0x000A: "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    0x0016: "TLS_DHE_RSA_WITH_3DES_EDE_CBC_SHA",
    0x002F: "TLS_RSA_WITH_AES_128_CBC_SHA",
    0x0033: "TLS_DHE_RSA_WITH_AES_128_CBC_SHA",
    0x0035: "TLS_RSA_WITH_AES_256_CBC_SHA",
    0x0039: "TLS_DHE_RSA_WITH_AES_256_CBC_SHA",
    0x003C: "TLS_RSA_WITH_AES_128_CBC_SHA256",
    0x003D: "TLS_RSA_WITH_AES_256_CBC_SHA256",
    0x0041: "TLS_RSA_WITH_CAMELLIA_128_CBC_SHA",
    0x0045: "TLS_DHE_RSA_WITH_CAMELLIA_128_CBC_SHA",
    0x0067: "TLS_DHE_RSA_WITH_AES_128_CBC_SHA256",
    0x006B: "TLS_DHE_RSA_WITH_AES_256_CBC_SHA256",
    0x0084: "TLS_RSA_WITH_CAMELLIA_256_CBC_SHA",
    0x0088: "TLS_DHE_RSA_WITH_CAMELLIA_256_CBC_SHA",
    0x009C: "TLS_RSA_WITH_AES_128_GCM_SHA256",
    0x009D: "TLS_RSA_WITH_AES_256_GCM_SHA384",
    0x009E: "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
    0x009F: "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
    0x00BA: "TLS_RSA_WITH_CAMELLIA_128_CBC_SHA256",
    0x00BE: "TLS_DHE_RSA_WITH_CAMELLIA_128_CBC_SHA256",
    0x00C0: "TLS_RSA_WITH_CAMELLIA_256_CBC_SHA256",
    0x00C4: "TLS_DHE_RSA_WITH_CAMELLIA_256_CBC_SHA256",
    0x00C6: "TLS_SM4_GCM_SM3",
    0x00C7: "TLS_SM4_CCM_SM3",
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
    0x1305: "TLS_AES_128_CCM_8_SHA256",
    0x1306: "TLS_AEGIS_256_SHA512",
    0x1307: "TLS_AEGIS_128L_SHA256",
    0xC008: "TLS_ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA",
    0xC009: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    0xC00A: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    0xC012: "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    0xC013: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    0xC014: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    0xC023: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    0xC024: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
    0xC027: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    0xC028: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
    0xC02B: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    0xC02C: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    0xC02F: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    0xC030: "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    0xC050: "TLS_RSA_WITH_ARIA_128_GCM_SHA256",
    0xC051: "TLS_RSA_WITH_ARIA_256_GCM_SHA384",
    0xC052: "TLS_DHE_RSA_WITH_ARIA_128_GCM_SHA256",
    0xC053: "TLS_DHE_RSA_WITH_ARIA_256_GCM_SHA384",
    0xC05C: "TLS_ECDHE_ECDSA_WITH_ARIA_128_GCM_SHA256",
    0xC05D: "TLS_ECDHE_ECDSA_WITH_ARIA_256_GCM_SHA384",
    0xC060: "TLS_ECDHE_RSA_WITH_ARIA_128_GCM_SHA256",
    0xC061: "TLS_ECDHE_RSA_WITH_ARIA_256_GCM_SHA384",
    0xC072: "TLS_ECDHE_ECDSA_WITH_CAMELLIA_128_CBC_SHA256",
    0xC073: "TLS_ECDHE_ECDSA_WITH_CAMELLIA_256_CBC_SHA384",
    0xC076: "TLS_ECDHE_RSA_WITH_CAMELLIA_128_CBC_SHA256",
    0xC077: "TLS_ECDHE_RSA_WITH_CAMELLIA_256_CBC_SHA384",
    0xC07A: "TLS_RSA_WITH_CAMELLIA_128_GCM_SHA256",
    0xC07B: "TLS_RSA_WITH_CAMELLIA_256_GCM_SHA384",
    0xC07C: "TLS_DHE_RSA_WITH_CAMELLIA_128_GCM_SHA256",
    0xC07D: "TLS_DHE_RSA_WITH_CAMELLIA_256_GCM_SHA384",
    0xC086: "TLS_ECDHE_ECDSA_WITH_CAMELLIA_128_GCM_SHA256",
    0xC087: "TLS_ECDHE_ECDSA_WITH_CAMELLIA_256_GCM_SHA384",
    0xC08A: "TLS_ECDHE_RSA_WITH_CAMELLIA_128_GCM_SHA256",
    0xC08B: "TLS_ECDHE_RSA_WITH_CAMELLIA_256_GCM_SHA384",
    0xC09C: "TLS_RSA_WITH_AES_128_CCM",
    0xC09D: "TLS_RSA_WITH_AES_256_CCM",
    0xC09E: "TLS_DHE_RSA_WITH_AES_128_CCM",
    0xC09F: "TLS_DHE_RSA_WITH_AES_256_CCM",
    0xC0A0: "TLS_RSA_WITH_AES_128_CCM_8",
    0xC0A1: "TLS_RSA_WITH_AES_256_CCM_8",
    0xC0A2: "TLS_DHE_RSA_WITH_AES_128_CCM_8",
    0xC0A3: "TLS_DHE_RSA_WITH_AES_256_CCM_8",
    0xC0AC: "TLS_ECDHE_ECDSA_WITH_AES_128_CCM",
    0xC0AD: "TLS_ECDHE_ECDSA_WITH_AES_256_CCM",
    0xC0AE: "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8",
    0xC0AF: "TLS_ECDHE_ECDSA_WITH_AES_256_CCM_8",
    0xC0B4: "TLS_SHA256_SHA256",
    0xC0B5: "TLS_SHA384_SHA384",
    0xC103: "TLS_GOSTR341112_256_WITH_KUZNYECHIK_MGM_L",
    0xC104: "TLS_GOSTR341112_256_WITH_MAGMA_MGM_L",
    0xC105: "TLS_GOSTR341112_256_WITH_KUZNYECHIK_MGM_S",
    0xC106: "TLS_GOSTR341112_256_WITH_MAGMA_MGM_S",
    0xCCA8: "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCA9: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCAA: "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}
"""All of TLS 1.3, and of those before it the ones with ECDHE, DHE or RSA, a certificate, and AEAD or CBC."""


def overhead(chosen: Chosen | None) -> Overhead:
    """Return the overhead of a record.

    Padding is not in it, except for CBC up to the end of a block. Where the suite is not known it may be any.
    """
    new = chosen is not None and chosen.version == TLS_1_3
    found = _part(chosen)
    if found is None or chosen is None:
        return Overhead(0, _LARGEST_1_3 if new else LARGEST_OVERHEAD)
    before, behind, block = found
    if block and chosen.version in _WITHOUT_IV:
        before = 0
    return Overhead(before + behind + min(block, 1), before + behind + block)


def padding(chosen: Chosen | None) -> tuple[int, ...] | None:
    """Return how many bytes CBC pads a plaintext with, by its length modulo ``CBC_BLOCK_BYTES``; None: no such suite.

    Not for versions before 1.1, in which libraries cut a plaintext so that an attack on CBC fails (RFC 4346, F.3).
    """
    found = _part(chosen)
    if found is None or chosen is None or not found[2] or chosen.version not in _CBC_AS_A_WHOLE:
        return None
    _, mac, block = found
    before = 0 if chosen.encrypt_then_mac else mac
    return tuple(block - (length + before) % block for length in range(CBC_BLOCK_BYTES))


def _part(chosen: Chosen | None) -> _Part | None:
    if chosen is None:
        return None
    suites = _SUITES_1_3 if chosen.version == TLS_1_3 else _SUITES_1_2
    return next((parts for name, parts in suites.items() if name in chosen.cipher), None)


def client_hello(body: bytes) -> Hello | None:
    """Read a ClientHello without its header of four bytes; None if it is none."""
    cursor = _Cursor(body)
    try:
        version = cursor.number(2)
        cursor.take(_RANDOM_BYTES)
        cursor.vector(1)
        cursor.vector(2)
        cursor.vector(1)
    except _TooShort:
        return None
    found = _extensions(cursor)
    versions = _versions(found.get(_SUPPORTED_VERSIONS, b""))
    return Hello(_server_name(found.get(_SERVER_NAME, b"")), _alpn(found.get(_ALPN, b"")), versions or (version,))


def server_hello(body: bytes) -> Chosen | None:
    """Read a ServerHello without its header of four bytes; None if it is none. A HelloRetryRequest reads like one."""
    cursor = _Cursor(body)
    try:
        version = cursor.number(2)
        cursor.take(_RANDOM_BYTES)
        cursor.vector(1)
        cipher = cursor.number(2)
        cursor.take(1)
    except _TooShort:
        return None
    extensions = _extensions(cursor)
    selected = extensions.get(_SUPPORTED_VERSIONS, b"")
    if len(selected) == 2:  # noqa: PLR2004 -- one ProtocolVersion
        version = int.from_bytes(selected, "big")
    names = _VERSION_NAMES.get(version, f"0x{version:04x}"), CIPHER_SUITES.get(cipher, f"0x{cipher:04x}")
    return Chosen(*names, _ENCRYPT_THEN_MAC in extensions)


def is_retry(body: bytes) -> bool:
    """Tell whether a ServerHello is a HelloRetryRequest."""
    return body[2 : 2 + _RANDOM_BYTES] == _RETRY


class HelloSearch:
    """Put the first hello of one direction together from the payloads of handshake records.

    Any other message ends the search, as what is longer than ``MAX_HELLO_BYTES``; a HelloRetryRequest is passed over.
    """

    __slots__ = ("_buffer", "_kind", "over")

    def __init__(self, kind: int) -> None:
        self._buffer = bytearray()
        self._kind = kind
        self.over = False

    def take(self, data: bytes) -> bytes | None:
        """Take the next bytes; return the message without its header when it is complete by them."""
        if self.over:
            return None
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEADER_BYTES and not self.over:
            end = _HEADER_BYTES + int.from_bytes(buffer[1:_HEADER_BYTES], "big")
            if buffer[0] != self._kind or end > MAX_HELLO_BYTES:
                self.stop()
            elif len(buffer) < end:
                break
            else:
                body = bytes(buffer[_HEADER_BYTES:end])
                del buffer[:end]
                if self._kind != SERVER_HELLO or not is_retry(body):
                    self.stop()
                    return body
        return None

    def stop(self) -> None:
        """End the search: bytes are missing, or what was searched for is found."""
        self.over = True
        self._buffer = bytearray()


class _TooShort(Exception):
    """A length that was told goes beyond the bytes that are there."""


class _Cursor:
    """Values one after another (RFC 8446, section 3); raises ``_TooShort``."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise _TooShort
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        return self.take(self.number(width))

    @property
    def left(self) -> bool:
        return self._position < len(self._data)


def _extensions(cursor: _Cursor) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    try:
        extensions = _Cursor(cursor.vector(2))
        while extensions.left:
            kind = extensions.number(2)
            found.setdefault(kind, extensions.vector(2))
    except _TooShort:
        pass
    return found


def _server_name(extension: bytes) -> str | None:
    try:
        cursor = _Cursor(_Cursor(extension).vector(2))
        kind, name = cursor.number(1), cursor.vector(2)
    except _TooShort:
        return None
    return _text(name[:MAX_NAME_BYTES]) if kind == _HOST_NAME else None


def _alpn(extension: bytes) -> tuple[str, ...]:
    names: list[str] = []
    try:
        cursor = _Cursor(_Cursor(extension).vector(2))
        while cursor.left and len(names) < MAX_ALPN_NAMES:
            names.append(_text(cursor.vector(1)))
    except _TooShort:
        pass
    return tuple(names)


def _versions(extension: bytes) -> tuple[int, ...]:
    versions: list[int] = []
    try:
        cursor = _Cursor(_Cursor(extension).vector(1))
        while cursor.left:
            versions.append(cursor.number(2))
    except _TooShort:
        pass
    return tuple(versions)


def _text(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")
