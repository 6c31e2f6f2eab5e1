"""Hellos written by hand from the RFCs, and those of OpenSSL; the names are held against the ones OpenSSL knows."""

from __future__ import annotations

import pickle
import re
import ssl
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.streams import tls_hello
from agentwatch.streams.tls_hello import Chosen, Hello, HelloSearch, Overhead

RANDOM = bytes(range(32))
RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def server_name(name: bytes) -> bytes:
    return extension(0, vector(2, b"\0" + vector(2, name)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in names)))


def supported_versions(*versions: int) -> bytes:
    return extension(43, vector(1, b"".join(version.to_bytes(2, "big") for version in versions)))


def client(*extensions: bytes, version: int = 0x0303) -> bytes:
    fixed = version.to_bytes(2, "big") + RANDOM + vector(1, b"session") + vector(2, b"\x13\x01\x13\x02") + b"\1\0"
    return fixed + (vector(2, b"".join(extensions)) if extensions else b"")


def server(cipher: int, *extensions: bytes, version: int = 0x0303, random: bytes = RANDOM) -> bytes:
    fixed = version.to_bytes(2, "big") + random + vector(1, b"") + cipher.to_bytes(2, "big") + b"\0"
    return fixed + (vector(2, b"".join(extensions)) if extensions else b"")


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + vector(3, body)


FULL = client(
    extension(0x0A0A, b"grease"),
    server_name(b"db.example.org"),
    alpn(b"h2", b"http/1.1"),
    supported_versions(0x0304, 0x0303),
    extension(51, bytes(1300)),
)
FULL_HELLO = Hello("db.example.org", ("h2", "http/1.1"), (0x0304, 0x0303))


def test_client_hello_tells_name_alpn_and_versions() -> None:
    assert tls_hello.client_hello(FULL) == FULL_HELLO


def test_client_hello_without_extensions_tells_its_own_version() -> None:
    assert tls_hello.client_hello(client(version=0x0301)) == Hello(None, (), (0x0301,))


def test_name_that_is_not_ascii_is_escaped() -> None:
    hello = tls_hello.client_hello(client(server_name(b"d\xc3\xa4tei"), alpn(b"\xff2")))
    assert hello == Hello(r"d\xc3\xa4tei", (r"\xff2",), (0x0303,))


def test_long_name_and_many_protocols_are_cut() -> None:
    names = [b"p%d" % number for number in range(100)]
    hello = tls_hello.client_hello(client(server_name(b"a" * 5000), alpn(*names)))
    assert hello is not None
    assert hello.server_name == "a" * tls_hello.MAX_NAME_BYTES
    assert hello.alpn == tuple(f"p{number}" for number in range(tls_hello.MAX_ALPN_NAMES))


def test_first_of_repeated_extensions_counts() -> None:
    hello = tls_hello.client_hello(client(server_name(b"first"), server_name(b"second")))
    assert hello is not None
    assert hello.server_name == "first"


def test_name_of_another_kind_than_a_host_is_none() -> None:
    hello = tls_hello.client_hello(client(extension(0, vector(2, b"\1" + vector(2, b"x")))))
    assert hello == Hello(None, (), (0x0303,))


@pytest.mark.parametrize("kind", [0, 16, 43])
@pytest.mark.parametrize("body", [b"", b"\0", b"\xff", b"\xff\xff", b"\0\xff\0", b"\0\5\0\xff\xffab"])
def test_malformed_extension_does_not_hide_the_others(kind: int, body: bytes) -> None:
    others = {0: server_name(b"name"), 16: alpn(b"h2"), 43: supported_versions(0x0304)}
    del others[kind]
    hello = tls_hello.client_hello(client(extension(kind, body), *others.values()))
    assert hello is not None
    assert hello.server_name in ("name", None if kind == 0 else "name")
    assert ("h2" in hello.alpn) == (kind != 16)
    assert (hello.versions == (0x0304,)) == (kind != 43)


def test_truncated_client_hello_never_raises_and_makes_nothing_up() -> None:
    for end in range(len(FULL)):
        hello = tls_hello.client_hello(FULL[:end])
        assert hello is None or hello == Hello(None, (), (0x0303,))


def test_server_hello_of_tls_1_2_tells_version_and_suite() -> None:
    chosen = tls_hello.server_hello(server(0xC02F))
    assert chosen == Chosen("1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")


def test_server_hello_of_tls_1_3_tells_the_selected_version() -> None:
    chosen = tls_hello.server_hello(server(0x1301, extension(51, bytes(36)), extension(43, b"\3\4")))
    assert chosen == Chosen("1.3", "TLS_AES_128_GCM_SHA256")


@pytest.mark.parametrize(
    ("version", "name"), [(0x0300, "ssl3"), (0x0301, "1.0"), (0x0302, "1.1"), (0x7F1C, "0x7f1c"), (0, "0x0000")]
)
def test_old_and_unknown_versions_and_suites_have_a_name(version: int, name: str) -> None:
    assert tls_hello.server_hello(server(0xFFFE, version=version)) == Chosen(name, "0xfffe")


def test_truncated_server_hello_never_raises() -> None:
    whole = server(0x1301, extension(43, b"\3\4"))
    fixed = len(server(0x1301))
    for end in range(len(whole)):
        assert (tls_hello.server_hello(whole[:end]) is None) == (end < fixed)


@given(st.binary(max_size=300))
def test_garbage_never_raises(data: bytes) -> None:
    tls_hello.client_hello(data)
    tls_hello.server_hello(data)
    tls_hello.client_hello(FULL[:40] + data)
    tls_hello.client_hello(client(extension(0, data), extension(16, data), extension(43, data)))
    tls_hello.server_hello(server(0x1301, extension(43, data)))


def pieces(data: bytes, step: int) -> list[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


@pytest.mark.parametrize("step", [1, 2, 3, 100, 10_000])
def test_search_finds_the_hello_however_it_is_cut(step: int) -> None:
    search = HelloSearch(tls_hello.CLIENT_HELLO)
    found = [search.take(piece) for piece in pieces(message(1, FULL) + b"more", step)]
    assert [body for body in found if body is not None] == [FULL]
    assert search.over


def test_search_survives_pickle_at_every_byte() -> None:
    search = HelloSearch(tls_hello.CLIENT_HELLO)
    found = []
    for piece in pieces(message(1, client()), 1):
        search = pickle.loads(pickle.dumps(search))  # noqa: S301 -- our own bytes
        found.append(search.take(piece))
    assert found[-1] == client()


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_search_passes_over_a_retry_request(step: int) -> None:
    retry = server(0x1302, extension(43, b"\3\4"), random=RETRY_RANDOM)
    search = HelloSearch(tls_hello.SERVER_HELLO)
    found = [search.take(piece) for piece in pieces(message(2, retry) + message(2, server(0x1301)), step)]
    assert [body for body in found if body is not None] == [server(0x1301)]


def test_search_ends_at_another_message_and_at_a_hello_beyond_the_limit() -> None:
    for begin in (message(11, b"certificate"), b"\1\xff\xff\xff", b"\1" + tls_hello.MAX_HELLO_BYTES.to_bytes(3, "big")):
        search = HelloSearch(tls_hello.CLIENT_HELLO)
        assert search.take(begin) is None
        assert search.over
        assert search.take(message(1, FULL)) is None


def test_longest_hello_is_found() -> None:
    longest = bytes(tls_hello.MAX_HELLO_BYTES - 4)
    assert HelloSearch(tls_hello.CLIENT_HELLO).take(message(1, longest)) == longest


def openssl_suites() -> dict[int, str]:
    command = ["openssl", "ciphers", "-V", "-stdname", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    codes_and_names = [line.split()[:3] for line in lines]
    return {int(code.replace(",0x", ""), 16): name for code, _, name in codes_and_names}


def test_names_are_those_of_openssl() -> None:
    known = openssl_suites()
    both = known.keys() & tls_hello.CIPHER_SUITES.keys()
    assert len(both) > 20
    assert {code: tls_hello.CIPHER_SUITES[code] for code in both} == {code: known[code] for code in both}
    common = re.compile(r"TLS_(AES|CHACHA20|(ECDHE_(RSA|ECDSA)|DHE_RSA|RSA)_WITH_(?!NULL))")
    assert {name for name in known.values() if common.match(name)} <= set(tls_hello.CIPHER_SUITES.values())


def test_no_name_is_given_twice() -> None:
    assert len(set(tls_hello.CIPHER_SUITES.values())) == len(tls_hello.CIPHER_SUITES)


@pytest.mark.parametrize(
    ("version", "cipher", "least", "most"),
    [
        ("1.3", "TLS_AES_128_GCM_SHA256", 17, 17),
        ("1.3", "TLS_CHACHA20_POLY1305_SHA256", 17, 17),
        ("1.3", "TLS_AES_128_CCM_SHA256", 17, 17),
        ("1.3", "TLS_AES_128_CCM_8_SHA256", 9, 9),
        ("1.3", "TLS_SHA384_SHA384", 49, 49),
        ("1.3", "0x1399", 0, 49),
        ("1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", 24, 24),
        ("1.2", "TLS_RSA_WITH_ARIA_128_GCM_SHA256", 24, 24),
        ("1.2", "TLS_RSA_WITH_AES_128_CCM", 24, 24),
        ("1.2", "TLS_RSA_WITH_AES_128_CCM_8", 16, 16),
        ("1.2", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", 16, 16),
        ("1.2", "TLS_RSA_WITH_AES_128_CBC_SHA", 37, 52),
        ("1.1", "TLS_RSA_WITH_AES_128_CBC_SHA", 37, 52),
        ("1.0", "TLS_RSA_WITH_AES_128_CBC_SHA", 21, 36),
        ("1.2", "TLS_RSA_WITH_AES_128_CBC_SHA256", 49, 64),
        ("1.2", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384", 65, 80),
        ("1.2", "TLS_RSA_WITH_3DES_EDE_CBC_SHA", 29, 36),
        ("1.2", "0x0000", 0, 80),
    ],
)
def test_overhead_is_nonce_tag_mac_and_padding(version: str, cipher: str, least: int, most: int) -> None:
    assert tls_hello.overhead(Chosen(version, cipher)) == Overhead(least, most)


def test_overhead_of_every_named_suite_is_known() -> None:
    for name in tls_hello.CIPHER_SUITES.values():
        new = "_WITH_" not in name or "_MGM_" in name
        least, most = tls_hello.overhead(Chosen("1.3" if new else "1.2", name))
        assert 0 < least <= most <= tls_hello.LARGEST_OVERHEAD, name


def test_unknown_suite_has_the_largest_overhead() -> None:
    assert tls_hello.overhead(None) == Overhead(0, tls_hello.LARGEST_OVERHEAD)


@pytest.mark.parametrize("name", [None, "db.example.org"])
@pytest.mark.parametrize("protocols", [(), ("h2", "postgresql")])
def test_hello_of_openssl_is_read(name: str | None, protocols: tuple[str, ...]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if protocols:
        context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    body = HelloSearch(tls_hello.CLIENT_HELLO).take(out.read()[5:])
    assert body is not None
    assert tls_hello.client_hello(body) == Hello(name, protocols, (0x0304, 0x0303))
