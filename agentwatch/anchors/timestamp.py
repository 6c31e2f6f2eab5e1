"""RFC 3161 timestamps of checkpoints: ask an authority for one, say what a stored one proves.

A checkpoint's bytes in, the authority's answer out, as it came: DER, a TimeStampResp. An answer and the checkpoint
in, a time out. What always holds:

* what is stamped is the SHA-256 of the stored note, its signatures included;
* a time means something only when ``verify`` returned it. Certificates must have been valid at that time, not now: a
  timestamp outlives the certificates it was made with (RFC 3161, appendix B);
* whatever bytes are read, nothing but TimestampError comes of them.

Not checked: revocation, and the hash of the signer's certificate in the signed attributes (``openssl ts -verify``
does the latter).
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from rfc3161_client import (
    HashAlgorithm,
    PKIStatus,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerifierBuilder,
    decode_timestamp_response,
)

from agentwatch.anchors.post import post
from agentwatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

MAX_RESPONSE_BYTES = 64 * 1024
"""Public authorities answer with 1 to 8 KiB: a signature and two to four certificates. What is longer is refused."""
MAX_ROOTS_BYTES = 4 * 1024 * 1024
"""A system's whole bundle of roots has 200 KiB."""
TIMEOUT_S = 30.0

_CONTENT_TYPE = "application/timestamp-query"
_HASHES = {
    "2.16.840.1.101.3.4.2.1": hashlib.sha256,
    "2.16.840.1.101.3.4.2.2": hashlib.sha384,
    "2.16.840.1.101.3.4.2.3": hashlib.sha512,
}
_CERTIFICATES_TAG = 0xA0
_LONG_LENGTH = 0x80
_REASON = re.compile(r'data: "Verify error: ?([^"]+)"|reason: "([^"]+)"')


class TimestampError(ValueError):
    """An answer is no timestamp, one of something else, or not by who should have made it."""


class _Answer(NamedTuple):
    response: TimeStampResponse
    digest: bytes
    moment: datetime


def request(checkpoint: bytes, url: str, timeout_s: float = TIMEOUT_S) -> bytes:
    """Return an authority's answer about a checkpoint, to be stored as it is. Who signed it is not checked.

    Raises OSError if there was no answer (post.py says within which limits), TimestampError if it is not about this
    checkpoint or not to this question.
    """
    question = TimestampRequestBuilder().data(checkpoint).hash_algorithm(HashAlgorithm.SHA256).build()
    data = post(url, question.as_bytes(), _CONTENT_TYPE, timeout_s=timeout_s, max_bytes=MAX_RESPONSE_BYTES)
    answer = _read(data, checkpoint)
    if answer.response.tst_info.nonce != question.nonce:
        raise TimestampError("it answers another question than ours (its nonce differs)")
    return data


def claimed(response: bytes, checkpoint: bytes) -> datetime:
    """Return the time that an answer about a checkpoint claims, whoever made it. Raises TimestampError."""
    return _read(response, checkpoint).moment


def verify(response: bytes, checkpoint: bytes, roots: Sequence[x509.Certificate]) -> datetime:
    """Return when a checkpoint existed, by an authority that descends from ``roots``; in UTC. Raises TimestampError.

    Certificates between the authority and its root come with the answer or are among ``roots``; a chain ends in a
    self-signed one of ``roots`` in any case.
    """
    answer = _read(response, checkpoint)
    try:
        VerifierBuilder(roots=list(roots)).build().verify(answer.response, answer.digest)
    except Exception as e:
        # Not only the library's errors: whatever cryptography raises for an odd certificate.
        raise TimestampError(f"it is not signed by an authority of these roots: {_reason(e)}") from e
    return answer.moment


def load_roots(path: Path) -> list[x509.Certificate]:
    """Read certificates to check answers with: PEM, one after another. Raises ConfigError."""
    try:
        with path.open("rb") as f:
            return x509.load_pem_x509_certificates(f.read(MAX_ROOTS_BYTES))
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"cannot read timestamp_roots from {path}: {e}; it must hold the authority's root certificate as PEM"
        ) from e


def _read(response: bytes, checkpoint: bytes) -> _Answer:
    if len(response) > MAX_RESPONSE_BYTES:
        raise TimestampError(f"it has {len(response)} bytes; no timestamp has")
    try:
        decoded = decode_timestamp_response(_in_order(response))
        status, words = PKIStatus(decoded.status), "; ".join(decoded.status_string)
    except Exception as e:
        raise TimestampError(f"it is not a TimeStampResp: {_reason(e)}") from e
    if status is not PKIStatus.GRANTED:
        raise TimestampError(f"the authority gave no timestamp: {status.name.lower()} {words[:200]!r}")
    try:
        imprint, moment = decoded.tst_info.message_imprint, decoded.tst_info.gen_time
        stamped, algorithm = imprint.message, imprint.hash_algorithm.dotted_string
    except Exception as e:
        raise TimestampError(f"it holds no timestamp: {_reason(e)}") from e
    if algorithm not in _HASHES:
        raise TimestampError(f"it is over a hash that we do not know ({algorithm})")
    digest = _HASHES[algorithm](checkpoint).digest()
    if stamped != digest:
        raise TimestampError("it is a timestamp of something else than this checkpoint")
    return _Answer(decoded, digest, moment)


def _reason(error: Exception) -> str:
    # The library passes OpenSSL's whole error stack on; the last entry says what was wrong.
    found = _REASON.findall(str(error))
    return " ".join(found[-1]).strip() if found else str(error)[:200] or type(error).__name__


# The library reads DER, in which the certificates, a SET OF, are sorted. OpenSSL, which many authorities run, writes
# the signer's first. They are outside of what is signed, so the copy that is decoded may have them in order.


class _Element(NamedTuple):
    tag: int
    at: int
    content: int
    end: int


def _in_order(der: bytes) -> bytes:
    (whole,) = _elements(der, 0, len(der))
    _, *token = _elements(der, whole.content, whole.end)
    if not token:
        return der  # a refusal
    _, explicit = _elements(der, token[0].content, token[0].end)
    (signed,) = _elements(der, explicit.content, explicit.end)
    for field in _elements(der, signed.content, signed.end):
        if field.tag == _CERTIFICATES_TAG:
            items = sorted(der[item.at : item.end] for item in _elements(der, field.content, field.end))
            return der[: field.content] + b"".join(items) + der[field.end :]
    return der


def _elements(der: bytes, at: int, end: int) -> list[_Element]:
    found = []
    while at < end:
        content = at + 2
        length = der[at + 1]
        if length & _LONG_LENGTH:
            content += length - _LONG_LENGTH
            length = int.from_bytes(der[at + 2 : content], "big")
        if content + length > end:
            raise TimestampError("it is cut short")
        found.append(_Element(der[at], at, content, content + length))
        at = content + length
    return found
