"""Signed notes against the examples of the specifications, and against every way to be none."""

from __future__ import annotations

import base64
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.log import note
from agentwatch.log.note import Key, Note, NoteError, Signature

# The example of golang.org/x/mod/sumdb/note, whose two signers have these keys.
PETER_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
ENOCH_VKEY = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
CRYPTOGRAPHY = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
ENOCH = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
EXAMPLE = f"{CRYPTOGRAPHY}\n{PETER}{ENOCH}"

# https://c2sp.org/signed-note
QUASIMODO = """\
Ognuno sta solo sul cuor della terra
trafitto da un raggio di sole:

ed è subito sera.

— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=
"""  # noqa: E501 -- a line of the specification

# https://c2sp.org/tlog-cosignature
SOFA_TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
SOFA = f"""{SOFA_TEXT}
— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501 -- lines of the specification
SOFA_MOMENT_S = 1679315147

SEED = bytes(range(32))
CERTIFICATE_TEXT = f"{note.CERTIFICATE}\nwhatever a certificate says\n"


def sign(text: str, *signers: note.Signer, moment_s: int = SOFA_MOMENT_S) -> Note:
    made = Note(text, ())
    for signer in signers:
        made = made.signed_by(signer, moment_s)
    return made


def refused(stored: bytes | str, *keys: Key) -> bool:
    try:
        note.verify(note.parse(stored), keys)
    except NoteError:
        return True
    return False


# -- examples


def test_the_example_of_sumdb_is_verified() -> None:
    parsed = note.parse(EXAMPLE.encode())
    assert parsed.text == CRYPTOGRAPHY
    assert [s.name for s in parsed.signatures] == ["PeterNeumann", "EnochRoot"]
    note.verify(parsed, [Key.parse(PETER_VKEY), Key.parse(ENOCH_VKEY)])
    assert str(parsed) == EXAMPLE


def test_the_example_of_sumdb_is_signed_to_the_byte() -> None:
    signer = note.Ed25519Signer("PeterNeumann", PETER_SEED)
    assert str(signer.key) == PETER_VKEY
    assert str(sign(CRYPTOGRAPHY, signer)) == f"{CRYPTOGRAPHY}\n{PETER}"


def test_the_example_of_signed_note_keeps_its_empty_line() -> None:
    parsed = note.parse(QUASIMODO)
    assert parsed.text.endswith("\n\ned è subito sera.\n")
    (signature,) = parsed.signatures
    assert (signature.name, signature.key_id.hex(), len(signature.data)) == (
        "quasimodo.example/salvatore",
        "367ba04b",
        64,
    )
    assert str(parsed) == QUASIMODO


def test_the_example_of_tlog_cosignature_has_its_time() -> None:
    parsed = note.parse(SOFA)
    log, witness = parsed.signatures
    assert parsed.text == SOFA_TEXT
    assert len(log.data) == note.SIGNATURE_BYTES[note.ED25519]
    assert len(witness.data) == note.SIGNATURE_BYTES[note.COSIGNATURE]
    assert note.moment_of(witness) == SOFA_MOMENT_S
    assert str(parsed) == SOFA


# -- what is signed, put together here as the specifications say it


def test_a_cosignature_is_over_time_and_text() -> None:
    cosigner = note.Cosigner("witness.example.com/w1", SEED)
    assert cosigner.key.key_id == hashlib.sha256(b"witness.example.com/w1\n\x04" + cosigner.key.public).digest()[:4]
    (signature,) = sign(SOFA_TEXT, cosigner).signatures
    assert signature.data[:8] == struct.pack(">Q", SOFA_MOMENT_S)
    message = b"cosignature/v1\ntime 1679315147\n" + SOFA_TEXT.encode()
    Ed25519PublicKey.from_public_bytes(cosigner.key.public).verify(signature.data[8:], message)


def test_an_ml_dsa_line_is_over_the_structure_that_names_the_tree() -> None:
    signer = note.MlDsaSigner("example.com/behind-the-sofa", SEED)
    assert signer.key.key_id == hashlib.sha256(b"example.com/behind-the-sofa\n\x06" + signer.key.public).digest()[:4]
    (signature,) = sign(SOFA_TEXT, signer).signatures
    message = (
        b"subtree/v1\n\0"
        b"\x1bexample.com/behind-the-sofa"
        + SOFA_MOMENT_S.to_bytes(8, "big")
        + b"\x1bexample.com/behind-the-sofa"
        + bytes(8)
        + (20852163).to_bytes(8, "big")
        + base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    )
    assert signature.data[:8] == struct.pack(">Q", SOFA_MOMENT_S)
    MLDSA44PublicKey.from_public_bytes(signer.key.public).verify(signature.data[8:], message)


def test_an_ml_dsa_line_of_a_certificate_is_over_its_text_and_has_no_time() -> None:
    signer = note.MlDsaSigner("origin", SEED)
    (signature,) = sign(CERTIFICATE_TEXT, signer).signatures
    assert note.moment_of(signature) == 0
    public = MLDSA44PublicKey.from_public_bytes(signer.key.public)
    public.verify(signature.data[8:], CERTIFICATE_TEXT.encode(), b"agentwatch-epoch/v1")


def test_a_time_in_a_certificate_is_refused_because_nothing_signs_it() -> None:
    signer = note.MlDsaSigner("origin", SEED)
    (signature,) = sign(CERTIFICATE_TEXT, signer).signatures
    dated = signature._replace(data=struct.pack(">Q", SOFA_MOMENT_S) + signature.data[8:])
    with pytest.raises(NoteError, match="has a time"):
        note.verify(Note(CERTIFICATE_TEXT, (dated,)), [signer.key])


# -- signers and keys


@pytest.fixture(params=[note.Ed25519Signer, note.Cosigner, note.MlDsaSigner])
def signer(request: pytest.FixtureRequest) -> note.Signer:
    made: note.Signer = request.param("example.com/behind-the-sofa", SEED)
    return made


def test_every_signer_is_verified_and_read_back(signer: note.Signer) -> None:
    made = sign(SOFA_TEXT, signer)
    parsed = note.parse(str(made).encode())
    assert parsed == made
    note.verify(parsed, [Key.parse(str(signer.key))])
    assert len(parsed.signatures[0].data) == note.SIGNATURE_BYTES[signer.key.kind]


def test_a_signature_is_good_for_its_own_kind_of_key_only() -> None:
    # One seed, one name: what one kind signed, no other takes.
    ed25519, cosigner = note.Ed25519Signer("name", SEED), note.Cosigner("name", SEED)
    assert ed25519.key.public == cosigner.key.public
    assert ed25519.key.key_id != cosigner.key.key_id
    for one, other in ((ed25519, cosigner), (cosigner, ed25519)):
        signature = one.sign(SOFA_TEXT, SOFA_MOMENT_S)
        assert refused(str(Note(SOFA_TEXT, (signature,))), other.key)
        assert refused(str(Note(SOFA_TEXT, (signature._replace(key_id=other.key.key_id),))), other.key)


@pytest.mark.parametrize("make", [note.Ed25519Signer, note.Cosigner])
def test_every_flipped_bit_of_a_signed_note_is_refused(make: type[note.Ed25519Signer | note.Cosigner]) -> None:
    signer = make("example.com/behind-the-sofa", SEED)
    stored = str(sign(SOFA_TEXT, signer)).encode()
    assert not refused(stored, signer.key)
    for at in range(len(stored)):
        for bit in range(8):
            flipped = bytearray(stored)
            flipped[at] ^= 1 << bit
            assert refused(bytes(flipped), signer.key), (at, bit)


@pytest.mark.parametrize("text", [SOFA_TEXT, CERTIFICATE_TEXT])
def test_every_flipped_bit_of_a_note_signed_with_ml_dsa_is_refused(text: str) -> None:
    # Every bit of the text, the name, the key id and the time; of the long signature both ends, and some between.
    signer = note.MlDsaSigner("example.com/behind-the-sofa", SEED)
    stored = str(sign(text, signer)).encode()
    assert not refused(stored, signer.key)
    begin = stored.index(b"\n\n") + 2 + len("— example.com/behind-the-sofa ".encode()) + 40
    for at in [*range(begin), *range(begin, len(stored) - 12, 11), *range(len(stored) - 12, len(stored))]:
        for bit in range(8):
            flipped = bytearray(stored)
            flipped[at] ^= 1 << bit
            assert refused(bytes(flipped), signer.key), (at, bit)


def test_every_byte_that_is_missing_or_added_is_refused() -> None:
    signer = note.Ed25519Signer("example.com/behind-the-sofa", SEED)
    stored = str(sign(SOFA_TEXT, signer)).encode()
    for at in range(len(stored)):
        assert refused(stored[:at], signer.key)
        assert refused(stored[:at] + stored[at + 1 :], signer.key)
        for byte in (b"A", b"\n", b" ", b"=", b"\x00", b"\xff"):
            assert refused(stored[:at] + byte + stored[at:], signer.key)
    for behind in (b"\n", b"x", b"\n\n", b" ", stored):
        assert refused(stored + behind, signer.key)


def test_all_keys_must_have_signed_and_others_do_not_matter() -> None:
    one, other, third = (note.Ed25519Signer("name", bytes([n]) * 32) for n in range(3))
    made = note.parse(str(sign(SOFA_TEXT, one, other)))
    note.verify(made, [one.key])
    note.verify(made, [other.key, one.key])
    with pytest.raises(NoteError, match="not signed by name"):
        note.verify(made, [one.key, third.key])
    false = sign(SOFA_TEXT, one).signatures[0]._replace(key_id=third.key.key_id)
    note.verify(Note(SOFA_TEXT, (false, *made.signatures)), [one.key])


def test_no_keys_have_signed_nothing() -> None:
    with pytest.raises(NoteError, match="no key"):
        note.verify(note.parse(EXAMPLE), [])


def test_a_name_or_a_key_id_alone_is_nobody() -> None:
    signer = note.Ed25519Signer("name", SEED)
    (signature,) = sign(SOFA_TEXT, signer).signatures
    assert refused(str(Note(SOFA_TEXT, (signature._replace(name="other"),))), signer.key)
    assert refused(str(Note(SOFA_TEXT, (signature._replace(key_id=b"othr"),))), signer.key)


def test_a_false_signature_beside_a_good_one_is_refused() -> None:
    signer = note.Ed25519Signer("name", SEED)
    (good,) = sign(SOFA_TEXT, signer).signatures
    false = good._replace(data=bytes(64))
    for signatures in ((good, false), (false, good)):
        with pytest.raises(NoteError, match="is false"):
            note.verify(Note(SOFA_TEXT, signatures), [signer.key])
    note.verify(Note(SOFA_TEXT, (good, good)), [signer.key])


def test_a_signature_of_another_length_is_refused(signer: note.Signer) -> None:
    (signature,) = sign(SOFA_TEXT, signer).signatures
    for data in (signature.data[:-1], signature.data + b"\0", signature.data[:7], b"\0"):
        with pytest.raises(NoteError, match="bytes, not"):
            note.verify(Note(SOFA_TEXT, (signature._replace(data=data),)), [signer.key])


def test_a_time_beyond_what_the_specification_allows_is_refused() -> None:
    cosigner = note.Cosigner("name", SEED)
    note.verify(sign(SOFA_TEXT, cosigner, moment_s=2**63 - 1), [cosigner.key])
    with pytest.raises(NoteError, match="cannot be"):
        note.verify(sign(SOFA_TEXT, cosigner, moment_s=2**63), [cosigner.key])


def test_a_signature_without_a_time_has_no_moment() -> None:
    with pytest.raises(NoteError, match="no time"):
        note.moment_of(Signature("name", b"idid", b"\0" * 7))


def test_sixteen_signatures_of_the_longest_kind_are_taken() -> None:
    signers = [note.MlDsaSigner("a" * 200, bytes([n]) * 32) for n in range(16)]
    made = sign(SOFA_TEXT, *signers)
    note.verify(note.parse(str(made).encode()), [signer.key for signer in signers])


# -- what is no note

LINE = PETER.rstrip("\n")
SIGNATURE = LINE.rpartition(" ")[2]
MALFORMED = {
    "nothing": "",
    "text only": "text\n",
    "no empty line": f"text\n{LINE}\n",
    "no signature behind the empty line": "text\n\n",
    "two empty lines behind the text and nothing": "text\n\n\n",
    "last line without its end": f"text\n\n{LINE}",
    "something behind the signatures": f"text\n\n{LINE}\nmore\n",
    "text between signatures": f"text\n\n{LINE}\nmore\n{LINE}\n",
    "empty line behind the signatures": f"text\n\n{LINE}\n\n",
    "hyphen": f"text\n\n- PeterNeumann {SIGNATURE}\n",
    "en dash": f"text\n\n\N{EN DASH} PeterNeumann {SIGNATURE}\n",
    "no space behind the dash": f"text\n\n—PeterNeumann {SIGNATURE}\n",
    "two spaces behind the dash": f"text\n\n—  PeterNeumann {SIGNATURE}\n",
    "space before the dash": f"text\n\n — PeterNeumann {SIGNATURE}\n",
    "no name": f"text\n\n— {SIGNATURE}\n",
    "empty name": f"text\n\n—  {SIGNATURE}\n",
    "two spaces behind the name": f"text\n\n— PeterNeumann  {SIGNATURE}\n",
    "space in the name": f"text\n\n— Peter Neumann {SIGNATURE}\n",
    "plus in the name": f"text\n\n— Peter+Neumann {SIGNATURE}\n",
    "unicode space in the name": f"text\n\n— Peter\N{NO-BREAK SPACE}Neumann {SIGNATURE}\n",
    "ideographic space in the name": f"text\n\n— Peter\N{IDEOGRAPHIC SPACE}Neumann {SIGNATURE}\n",
    "line separator in the name": f"text\n\n— Peter\N{LINE SEPARATOR}Neumann {SIGNATURE}\n",
    "next line in the name": f"text\n\n— Peter\x85Neumann {SIGNATURE}\n",
    "no signature": "text\n\n— PeterNeumann\n",
    "empty signature": "text\n\n— PeterNeumann \n",
    "space behind the signature": f"{EXAMPLE[:-1]} \n",
    "carriage return": EXAMPLE.replace("\n", "\r\n"),
    "tab in the text": f"te\txt\n\n{LINE}\n",
    "zero in the text": f"te\0xt\n\n{LINE}\n",
    "escape in the text": f"te\x1bxt\n\n{LINE}\n",
    "key id only": "text\n\n— PeterNeumann x08gow==\n",
    "less than a key id": "text\n\n— PeterNeumann x08g\n",
    "not base64": "text\n\n— PeterNeumann x08go!ZJ\n",
    "base64 for addresses": "text\n\n— PeterNeumann x08go_ZJ\n",
    "no padding": f"text\n\n— PeterNeumann {SIGNATURE.rstrip('=')}\n",
    "too much padding": f"text\n\n— PeterNeumann {SIGNATURE}=\n",
    "padding in the middle": f"text\n\n— PeterNeumann x08gow=={SIGNATURE}\n",
    "bits behind the end": f"text\n\n— PeterNeumann {SIGNATURE.replace('nAM=', 'nAN=')}\n",
    "half of a surrogate pair": f"te\ud800xt\n\n{LINE}\n",
    "too long": f"{'a' * note.MAX_NOTE_BYTES}\n\n{LINE}\n",
    "too long in bytes": f"{'é' * (note.MAX_NOTE_BYTES // 2)}\n\n{LINE}\n",
}


@pytest.mark.parametrize("stored", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused(stored: str) -> None:
    with pytest.raises(NoteError):
        note.parse(stored)
    with pytest.raises(NoteError):
        note.parse(stored.encode(errors="surrogatepass"))


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_what_is_not_utf_8_is_refused(text: bytes) -> None:
    with pytest.raises(NoteError, match="UTF-8"):
        note.parse(b"te" + text + b"xt\n\n" + PETER.encode())


@settings(deadline=None)
@given(
    st.text(max_size=60),
    st.lists(st.tuples(st.text(min_size=1, max_size=8), st.binary(min_size=5, max_size=80)), max_size=3),
)
def test_a_note_has_one_spelling(text: str, signed: list[tuple[str, bytes]]) -> None:
    made = Note(f"{text}\n", tuple(Signature(name, data[:4], data[4:]) for name, data in signed))
    try:
        stored = str(made).encode()
        parsed = note.parse(stored)
    except (NoteError, UnicodeEncodeError):
        return
    assert str(parsed).encode() == stored


# -- vkeys


def test_the_parts_of_a_vkey_must_belong_together() -> None:
    # As the tests of golang.org/x/mod/sumdb/note: every part of it, and every byte one higher.
    assert str(Key.parse(PETER_VKEY)) == PETER_VKEY
    for begin in range(len(PETER_VKEY)):
        for end in range(begin + 1, len(PETER_VKEY) + 1):
            if (begin, end) != (0, len(PETER_VKEY)):
                with pytest.raises(NoteError):
                    Key.parse(PETER_VKEY[begin:end])
    for at, char in enumerate(PETER_VKEY):
        with pytest.raises(NoteError):
            Key.parse(f"{PETER_VKEY[:at]}{chr(ord(char) + 1)}{PETER_VKEY[at + 1 :]}")


def vkey(name: str, data: bytes) -> str:
    key_id = hashlib.sha256(name.encode(errors="surrogatepass") + b"\n" + data).digest()[:4]
    return f"{name}+{key_id.hex()}+{base64.b64encode(data).decode()}"


PUBLIC = Key.parse(PETER_VKEY).public


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        PETER_VKEY.replace("c74f20a3", "C74F20A3"),
        PETER_VKEY.replace("c74f20a3", "0c74f20a3"),
        PETER_VKEY.replace("+", " "),
        f"{PETER_VKEY}=",
        f"{PETER_VKEY}+",
        "",
        "++",
        vkey("", b"\x01" + PUBLIC),
        vkey("with space", b"\x01" + PUBLIC),
        vkey("with\N{NO-BREAK SPACE}space", b"\x01" + PUBLIC),
        vkey("with\x01control", b"\x01" + PUBLIC),
        vkey("half\ud800", b"\x01" + PUBLIC),
        vkey("name", b""),
        vkey("name", b"\x01"),
        vkey("name", b"\x01" + PUBLIC[:-1]),
        vkey("name", b"\x04" + PUBLIC + b"\0"),
        vkey("name", b"\x02" + PUBLIC),
        vkey("name", b"\x06" + PUBLIC),
        vkey("name", b"\x01" + bytes(1312)),
    ],
)
def test_what_is_no_vkey_of_a_kind_that_is_known_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Key.parse(text)


def test_a_vkey_may_be_a_line_of_a_file() -> None:
    assert Key.parse(f"{PETER_VKEY}\n") == Key.parse(PETER_VKEY)


def test_vkeys_of_all_kinds_are_read(signer: note.Signer) -> None:
    assert Key.parse(str(signer.key)) == signer.key
    assert str(signer.key).partition("+")[0] == signer.key.name


@pytest.mark.parametrize("name", ["", "with space", "with+plus", "with\nline", "with\x01control", "half\ud800"])
@pytest.mark.parametrize("make", [note.Ed25519Signer, note.Cosigner, note.MlDsaSigner])
def test_nobody_signs_under_a_name_that_no_note_can_have(make: type[note.Ed25519Signer], name: str) -> None:
    with pytest.raises(NoteError, match="cannot sign under"):
        make(name, SEED)


# -- what ML-DSA-44 signs


@pytest.mark.parametrize(
    "text",
    [
        "some text\n",
        SOFA_TEXT[:-1],
        f"{SOFA_TEXT}an extension line\n",
        f"\n{SOFA_TEXT}",
        SOFA_TEXT.replace("\n20852163", "\n020852163"),
        SOFA_TEXT.replace("\n20852163", "\n-1"),
        SOFA_TEXT.replace("\n20852163", "\n99999999999999999999"),
        SOFA_TEXT.replace("q2I=", "q2J="),
        SOFA_TEXT.replace("CsUYapGG", "CsUY"),
        SOFA_TEXT.replace("example.com", "a" * 256),
        SOFA_TEXT.replace("example.com/behind-the-sofa", ""),
    ],
)
def test_ml_dsa_signs_nothing_that_it_does_not_cover(text: str) -> None:
    signer = note.MlDsaSigner("name", SEED)
    with pytest.raises(NoteError):
        signer.sign(text, 0)
    (signature,) = sign(SOFA_TEXT, signer).signatures
    with pytest.raises(NoteError):
        note.verify(Note(text, (signature,)), [signer.key])


def test_a_name_that_is_too_long_for_ml_dsa_is_refused() -> None:
    note.MlDsaSigner("a" * 255, SEED).sign(SOFA_TEXT, 0)
    with pytest.raises(NoteError, match="1 to 255 bytes"):
        note.MlDsaSigner("a" * 256, SEED).sign(SOFA_TEXT, 0)


def test_a_checkpoints_signature_is_none_of_a_certificate() -> None:
    # Whoever can have a checkpoint signed cannot have a key certified with it: the context is another.
    private = MLDSA44PrivateKey.from_seed_bytes(SEED)
    signer = note.MlDsaSigner("name", SEED)
    without_context = bytes(8) + private.sign(CERTIFICATE_TEXT.encode())
    with pytest.raises(NoteError, match="is false"):
        note.verify(Note(CERTIFICATE_TEXT, (Signature("name", signer.key.key_id, without_context),)), [signer.key])
