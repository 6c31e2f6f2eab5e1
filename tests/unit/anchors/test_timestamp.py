"""What a timestamp proves, with answers of the openssl command, and what of them is refused."""

from __future__ import annotations

import re
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from agentwatch.anchors import timestamp
from agentwatch.anchors.timestamp import TimestampError
from agentwatch.errors import ConfigError
from tests.unit.anchors.fix_authority import DAY, DER, PEM, Authority

if TYPE_CHECKING:
    from pathlib import Path

DATE = "date -ud \"$(openssl ts -reply -in 1834.tsr -text 2>/dev/null | sed -n 's/^Time stamp: //p')\" +%s"
"""How an auditor gets the time of a timestamp, in seconds since 1970. Also in the documents."""
VERIFY = "openssl ts -verify -in 1834.tsr -data 1834.checkpoint -CAfile roots.pem"


def openssl_accepts(folder: Path, response: bytes, checkpoint: bytes, authority: Authority, more: str = "") -> bool:
    (folder / "1834.tsr").write_bytes(response)
    (folder / "1834.checkpoint").write_bytes(checkpoint)
    (folder / "roots.pem").write_bytes(authority.root_file.read_bytes())
    done = subprocess.run(["bash", "-c", f"{VERIFY} {more}"], cwd=folder, capture_output=True, check=False, text=True)
    assert ("Verification: OK" in done.stdout) == (done.returncode == 0)
    return done.returncode == 0


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_timestamp_says_when_the_checkpoint_existed(authority: Authority, checkpoint: bytes, digest: str) -> None:
    before = now()
    response = authority.stamp(checkpoint, digest)
    moment = timestamp.verify(response, checkpoint, authority.roots)
    assert before <= moment <= now()
    assert timestamp.claimed(response, checkpoint) == moment


def test_altered_checkpoint_is_not_what_was_stamped(authority: Authority, checkpoint: bytes, tmp_path: Path) -> None:
    response = authority.stamp(checkpoint)
    assert openssl_accepts(tmp_path, response, checkpoint, authority)
    for altered in (checkpoint.replace(b"\n1834\n", b"\n1835\n"), checkpoint[:-1], checkpoint + b"\n"):
        with pytest.raises(TimestampError, match="something else"):
            timestamp.verify(response, altered, authority.roots)
        assert not openssl_accepts(tmp_path, response, altered, authority)


def test_other_roots_do_not_vouch_for_it(authority: Authority, checkpoint: bytes, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    response = authority.stamp(checkpoint)
    with pytest.raises(TimestampError, match="not signed by an authority of these roots"):
        timestamp.verify(response, checkpoint, other.roots)
    with pytest.raises(TimestampError, match="root"):
        timestamp.verify(response, checkpoint, [])
    # The certificate that signed is no root either.
    with pytest.raises(TimestampError):
        timestamp.verify(response, checkpoint, [authority.signer])
    assert timestamp.verify(response, checkpoint, [*other.roots, *authority.roots])
    assert not openssl_accepts(tmp_path, response, checkpoint, other)


def test_certificate_for_something_else_makes_no_timestamps(authority: Authority, checkpoint: bytes) -> None:
    response = authority.stamp(checkpoint)
    for usage in (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.EMAIL_PROTECTION):
        twin = authority.twin(usage).public_bytes(DER)
        altered = response.replace(authority.signer.public_bytes(DER), twin)
        assert altered != response
        with pytest.raises(TimestampError, match="purpose"):
            timestamp.verify(altered, checkpoint, authority.roots)


def test_answer_with_its_chain_in_any_order_is_read(checkpoint: bytes, tmp_path: Path) -> None:
    # openssl writes the signer's certificate first, then the chain; how DER sorts them is chance.
    orders = set()
    for i in range(6):
        authority = Authority(tmp_path / str(i), through=True, with_chain=True)
        response = authority.stamp(checkpoint)
        assert timestamp.verify(response, checkpoint, authority.roots)
        certificates = [c.public_bytes(DER) for c in (authority.signer, authority.middle, authority.root)]
        orders.add(certificates == sorted(certificates))
    assert False in orders


def test_intermediate_comes_with_the_answer_or_with_the_roots(checkpoint: bytes, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tsa", through=True)
    response = authority.stamp(checkpoint)
    with pytest.raises(TimestampError, match="issuer"):
        timestamp.verify(response, checkpoint, authority.roots)
    assert timestamp.verify(response, checkpoint, [authority.root, authority.middle])
    with pytest.raises(TimestampError):
        timestamp.verify(response, checkpoint, [authority.middle])


def test_timestamp_stays_good_when_the_certificate_expires(checkpoint: bytes, tmp_path: Path) -> None:
    for seconds in (2, 4, 8, 16, 32):
        ends = now() + timedelta(seconds=seconds)
        authority = Authority(tmp_path / str(seconds), ends=ends)
        response = authority.stamp(checkpoint)
        if timestamp.claimed(response, checkpoint) < ends:
            break  # on a machine that is not too slow for it
    while now() <= ends:
        time.sleep(0.1)
    assert authority.signer.not_valid_after_utc < datetime.now(UTC)
    assert timestamp.verify(response, checkpoint, authority.roots) <= ends
    # An auditor with openssl has to say when.
    assert not openssl_accepts(tmp_path, response, checkpoint, authority)
    assert openssl_accepts(tmp_path, response, checkpoint, authority, f'-attime "$({DATE})"')


@pytest.mark.parametrize(("begins", "ends"), [(-2, -1), (1, 2)], ids=["expired", "not yet valid"])
def test_certificate_must_be_valid_when_it_signs(checkpoint: bytes, tmp_path: Path, begins: int, ends: int) -> None:
    authority = Authority(tmp_path / "tsa", begins=now() + begins * DAY, ends=now() + ends * DAY)
    response = authority.stamp(checkpoint)
    with pytest.raises(TimestampError, match=r"expired|not yet valid"):
        timestamp.verify(response, checkpoint, authority.roots)


def test_every_altered_byte_is_refused_or_of_no_consequence(authority: Authority, checkpoint: bytes) -> None:
    response = authority.stamp(checkpoint)
    moment = timestamp.verify(response, checkpoint, authority.roots)
    accepted = []
    for at in range(len(response)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(response)
            altered[at] ^= flip
            try:
                assert timestamp.verify(bytes(altered), checkpoint, authority.roots) == moment
            except TimestampError:
                continue
            accepted.append(at)
    assert {at for at in accepted if at not in unsigned_bytes(response)} == set()


def unsigned_bytes(response: bytes) -> set[int]:
    """Return where the fields are that nobody signs, as openssl sees them: two versions, the signature's algorithm."""
    command = ["openssl", "asn1parse", "-inform", "DER"]
    shown = subprocess.run(command, check=True, input=response, capture_output=True).stdout.decode()
    found = {}
    for at, depth, head, length, kind in re.findall(r"(\d+):d=(\d+) +hl=(\d+) l= *(\d+) prim: (INTEGER|OBJECT)", shown):
        found[depth, kind] = range(int(at), int(at) + int(head) + int(length))  # the last one counts
    return {*found["4", "INTEGER"], *found["6", "INTEGER"], *found["7", "OBJECT"]}


def test_answer_cut_anywhere_is_refused(authority: Authority, checkpoint: bytes) -> None:
    response = authority.stamp(checkpoint)
    for at in range(len(response)):
        with pytest.raises(TimestampError):
            timestamp.verify(response[:at], checkpoint, authority.roots)
    with pytest.raises(TimestampError):
        timestamp.verify(response + b"\0", checkpoint, authority.roots)


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>Please log in to the network</body></html>",
        b"0" * (timestamp.MAX_RESPONSE_BYTES + 1),
        bytes(1000),
        b"\x30\x80" * 1000,
        b"\x30\xff" + b"\xff" * 200,
    ],
    ids=["html", "long", "zeros", "nested", "endless length"],
)
def test_what_is_no_timestamp_is_said_to_be_none(data: bytes, checkpoint: bytes, authority: Authority) -> None:
    with pytest.raises(TimestampError, match=r"is not a TimeStampResp|no timestamp has"):
        timestamp.verify(data, checkpoint, authority.roots)


def test_refusal_is_told_with_the_reason_that_it_gives(authority: Authority, checkpoint: bytes) -> None:
    refusal = authority.stamp(checkpoint, "md5")
    with pytest.raises(TimestampError, match=r"rejection '.*algorithm"):
        timestamp.claimed(refusal, checkpoint)


def test_roots_are_read_from_a_file(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "roots.pem"
    path.write_bytes(authority.root.public_bytes(PEM) + authority.middle.public_bytes(PEM))
    assert timestamp.load_roots(path) == [authority.root, authority.middle]
    path.write_text("nothing")
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="timestamp_roots"):
            timestamp.load_roots(wrong)
