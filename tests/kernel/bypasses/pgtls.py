"""PostgreSQL over TLS by OpenSSL's own functions, without its headers; the environment says where, as for pg.py."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import pg  # type: ignore[import-not-found] # it lies beside this script

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

SSL_REQUEST = struct.pack(">II", 8, 80877103)
TERMINATE = b"X\0\0\0\4"
TLS_1_2, TLS_1_3 = 0x0303, 0x0304
_POINTER, _INT, _LONG, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t
_SET_GROUPS, _SET_MAX_PROTO_VERSION, _SET_SSL = 92, 124, 109  # SSL_CTX_ctrl, BIO_ctrl
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "BIO_ctrl": (_LONG, _POINTER, _INT, _LONG, _POINTER),
    "BIO_f_ssl": (_POINTER,),
    "BIO_meth_new": (_POINTER, _INT, _TEXT),
    "BIO_meth_set_ctrl": (_INT, _POINTER, _POINTER),
    "BIO_meth_set_read": (_INT, _POINTER, _POINTER),
    "BIO_meth_set_write": (_INT, _POINTER, _POINTER),
    "BIO_new": (_POINTER, _POINTER),
    "BIO_read": (_INT, _POINTER, _POINTER, _INT),
    "BIO_set_init": (None, _POINTER, _INT),
    "BIO_write": (_INT, _POINTER, _POINTER, _INT),
    "SSL_CIPHER_find": (_POINTER, _POINTER, _TEXT),
    "SSL_clear": (_INT, _POINTER),
    "SSL_connect": (_INT, _POINTER),
    "SSL_CTX_ctrl": (_LONG, _POINTER, _INT, _LONG, _POINTER),
    "SSL_CTX_new": (_POINTER, _POINTER),
    "SSL_CTX_set_block_padding": (_INT, _POINTER, _SIZE),
    "SSL_CTX_set_cipher_list": (_INT, _POINTER, _TEXT),
    "SSL_CTX_set_psk_use_session_callback": (None, _POINTER, _POINTER),
    "SSL_free": (None, _POINTER),
    "SSL_get1_session": (_POINTER, _POINTER),
    "SSL_get_early_data_status": (_INT, _POINTER),
    "SSL_new": (_POINTER, _POINTER),
    "SSL_read": (_INT, _POINTER, _POINTER, _INT),
    "SSL_SESSION_new": (_POINTER,),
    "SSL_SESSION_set1_master_key": (_INT, _POINTER, _TEXT, _SIZE),
    "SSL_SESSION_set_cipher": (_INT, _POINTER, _POINTER),
    "SSL_SESSION_set_max_early_data": (_INT, _POINTER, ctypes.c_uint32),
    "SSL_SESSION_set_protocol_version": (_INT, _POINTER, _INT),
    "SSL_set_bio": (None, _POINTER, _POINTER, _POINTER),
    "SSL_set_session": (_INT, _POINTER, _POINTER),
    "SSL_set_fd": (_INT, _POINTER, _INT),
    "SSL_shutdown": (_INT, _POINTER),
    "SSL_write": (_INT, _POINTER, _POINTER, _INT),
    "SSL_write_early_data": (_INT, _POINTER, _POINTER, _SIZE, _POINTER),
    "TLS_client_method": (_POINTER,),
}


class OpenSsl:
    """A libssl and its libcrypto, by their functions' names."""

    def __init__(self, libssl: str = "libssl.so.3", libcrypto: str = "libcrypto.so.3") -> None:
        self.libraries = ctypes.CDLL(libcrypto), ctypes.CDLL(libssl)

    def __getattr__(self, name: str) -> Any:
        """Return a function."""
        for library in self.libraries:
            if hasattr(library, name):
                return signed(library[name], name)
        raise AttributeError(name)


def signed(function: Any, name: str) -> Any:
    """Give a function the signature of a name."""
    function.restype, *function.argtypes = _SIGNATURES[name]
    return function


class Channel(NamedTuple):
    """How to say something and how to hear the answer."""

    write: Callable[[bytes], int]
    read: Callable[[int], bytes]


class Tls:
    """A connection under TLS: to the server, if no other is given. ``prepare`` gets the context."""

    def __init__(
        self,
        openssl: OpenSsl | None = None,
        *,
        to: socket.socket | None = None,
        prepare: Callable[[OpenSsl, int], object] | None = None,
    ) -> None:
        self.openssl = openssl or OpenSsl()
        context = self.openssl.SSL_CTX_new(self.openssl.TLS_client_method())
        if prepare is not None:
            prepare(self.openssl, context)
        self.ssl = self.openssl.SSL_new(context)
        self.socket = to or asked()
        self.openssl.SSL_set_fd(self.ssl, self.socket.fileno())

    def connect(self) -> Tls:
        """Do the handshake."""
        must(self.openssl.SSL_connect(self.ssl))
        return self

    def write_early(self, data: bytes) -> None:
        """Write before the handshake."""
        written = ctypes.c_size_t()
        must(self.openssl.SSL_write_early_data(self.ssl, data, len(data), ctypes.byref(written)))

    def plainly(self) -> Channel:
        """Return the way that every client goes."""
        return channel(self.ssl, self.openssl.SSL_write, self.openssl.SSL_read)

    def by_bio(self) -> Channel:
        """Return the way through a BIO of type SSL, whose calls lead past SSL_write and SSL_read."""
        return channel(self.as_bio(), self.openssl.BIO_write, self.openssl.BIO_read)

    def as_bio(self) -> int:
        """Return such a BIO."""
        bio: int = self.openssl.BIO_new(self.openssl.BIO_f_ssl())
        self.openssl.BIO_ctrl(bio, _SET_SSL, 0, self.ssl)
        return bio

    def end(self) -> None:
        """Close the connection as it should be."""
        self.openssl.SSL_shutdown(self.ssl)
        self.socket.close()


def channel(thing: int, write: Any, read: Any) -> Channel:
    """Return what speaks by two functions on one of OpenSSL's objects."""

    def into(most: int) -> bytes:
        buffer = ctypes.create_string_buffer(most)
        length = must(read(thing, buffer, most))
        return buffer.raw[:length]

    return Channel(lambda data: must(write(thing, data, len(data))), into)


def must(result: int) -> int:
    """Return how many bytes a call has taken or given, or end."""
    if result <= 0:
        raise SystemExit(f"TLS failed: {result}")
    return result


def asked() -> socket.socket:
    """Return a connection whose server waits for the handshake."""
    s: socket.socket = pg.new_socket()
    s.connect(pg.address())
    s.sendall(SSL_REQUEST)
    assert s.recv(1) == b"S"
    return s


def at_most_tls_1_2(openssl: OpenSsl, context: int) -> None:
    """Have a context that knows no TLS 1.3."""
    openssl.SSL_CTX_ctrl(context, _SET_MAX_PROTO_VERSION, TLS_1_2, None)


def with_groups(openssl: OpenSsl, context: int, groups: bytes) -> None:
    """Have a context that offers these groups for the exchange of keys."""
    openssl.SSL_CTX_ctrl(context, _SET_GROUPS, 0, ctypes.cast(ctypes.c_char_p(groups), _POINTER))


def ready(say: Channel) -> bytes:
    """Read until the server is ready for a query; return what it said."""
    data = b""
    while data[-6:-1] != pg.READY:
        data += say.read(65536)
    return data


def begin(say: Channel) -> None:
    """Begin PostgreSQL's protocol."""
    say.write(pg.hello())
    ready(say)


def ask(say: Channel, text: str) -> None:
    """Have a statement executed."""
    say.write(pg.query(text))
    ready(say)


def whole(tls: Tls, text: str, say: Channel | None = None) -> None:
    """Do what every client does, or the same in another way."""
    say_all(tls.connect(), text, say)


def say_all(tls: Tls, text: str, say: Channel | None = None) -> None:
    """Do it on a connection whose handshake is done."""
    say = say or tls.plainly()
    begin(say)
    ask(say, text)
    say.write(TERMINATE)
    tls.end()


def protect(begin: int, length: int, flags: int) -> None:
    """Change what may be done with one's memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(length), flags):
        raise OSError(ctypes.get_errno(), "mprotect")
