"""``agentwatch secrets keygen|open``: the auditor's side of sealed credentials.

The private key is made and used where the auditor is; the recorder knows the public one only. ``open`` reads the log,
or with ``-`` what `agentwatch tail --json` prints, so that the key need never come to the watched host.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox

from agentwatch.cli.common import config_option, load_config
from agentwatch.cli.output import note, print_json
from agentwatch.cli.safe import printable
from agentwatch.errors import ConfigError, LogError, NotFoundError, StoreError
from agentwatch.log.reader import LogReader
from agentwatch.query import present
from agentwatch.records.encoding import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENED = 0
SOME_NOT_OPENED = 1
_EPILOG = """\
Exit status: 0 all that is sealed was opened, 1 something is sealed for another key or was changed, 66 no such file,
78 the file holds no key. Errors as in `agentwatch --help`.
"""


@click.group("secrets")
@config_option
def command() -> None:
    """Make an auditor's key, and open what was sealed for it."""


@command.command("keygen")
@click.option("-o", "--output", "path", metavar="FILE", required=True, type=click.Path(path_type=Path))
def keygen(path: Path) -> None:
    """Make an X25519 key: the private one into FILE (mode 0600), the line for the configuration on stdout.

    Keep FILE away from watched hosts. Nothing can be opened without it. An existing FILE is left alone.

    Exit status: 0 made, 74 FILE exists or cannot be written.
    """
    key = PrivateKey.generate()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StoreError(
            f"cannot make {path} for the private key: {e.strerror}; name a file that does not exist"
        ) from e
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600)  # whatever the umask is
        file.write(base64.b64encode(bytes(key)) + b"\n")
        file.flush()
        os.fsync(fd)
    click.echo(f'auditor_key = "{base64.b64encode(bytes(key.public_key)).decode()}"')
    note(f'the private key is in {path}; the line goes under [secrets], beside policy = "seal"')


@command.command("open", epilog=_EPILOG)
@click.option("--key", "path", metavar="FILE", required=True, type=click.Path(path_type=Path), help="The private key.")
@click.option("--session", metavar="S", help="One session: its id, or how that begins.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.argument("source", metavar="[-]", required=False, type=click.Choice(["-"]))
@config_option
def open_(path: Path, *, session: str | None, as_json: bool, source: str | None) -> None:
    """Print the originals of credentials that were sealed: of the log, or with - of records in JSON on stdin."""
    box = SealedBox(_private_key(path))
    closed = 0
    for record in _from_stdin() if source else _from_log():
        if session is not None and not str(record.get("session") or "").startswith(session):
            continue
        for told in _sealed(record):
            try:
                value = box.decrypt(told["sealed"])
            except (CryptoError, TypeError, ValueError):
                closed += 1
                note(f"record {record.get('seq')}, {told.get('field')}: sealed for another key, or changed")
                continue
            _print(record, told, value, as_json=as_json)
    click.get_current_context().exit(SOME_NOT_OPENED if closed else OPENED)


def _private_key(path: Path) -> PrivateKey:
    try:
        return PrivateKey(base64.b64decode(path.read_bytes().strip(), validate=True))
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no key {path}; `agentwatch secrets keygen -o FILE` makes one") from e
    except (binascii.Error, CryptoError, TypeError, ValueError) as e:
        raise ConfigError(f"{path} is no private key as `agentwatch secrets keygen` writes it") from e


def _from_log() -> Iterator[dict[str, Any]]:
    for seq, payload in LogReader(load_config().log_dir).records(0):
        record = decode(payload)
        if "secrets" in record:
            yield present.event(seq, record)


def _from_stdin() -> Iterator[dict[str, Any]]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as e:
            raise LogError(
                f"line {number} of stdin is no JSON object; give it what `agentwatch tail --json` prints"
            ) from e
        if isinstance(record, dict):
            yield record


def _sealed(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return what ``secrets`` of a record tells that has a sealed value, as bytes."""
    secrets = record.get("secrets")
    for told in secrets if isinstance(secrets, list) else ():
        sealed = told.get("sealed") if isinstance(told, dict) else None
        if isinstance(sealed, dict) and isinstance(encoded := sealed.get("base64"), str):
            try:
                yield {**told, "sealed": base64.b64decode(encoded, validate=True)}
            except binascii.Error:
                yield {**told, "sealed": b""}  # is told as one that does not open


def _print(record: dict[str, Any], told: dict[str, Any], value: bytes, *, as_json: bool) -> None:
    text = value.decode(errors="replace")
    if not as_json:
        head = f"{record.get('seq')} {record.get('time')} {record.get('kind')} {told.get('field')} {told.get('hmac')}"
        click.echo(f"{printable(head)} {printable(text)}")
        return
    row = {key: record.get(key) for key in ("seq", "kind", "time", "session")}
    row |= {"field": told.get("field"), "hmac": told.get("hmac"), "value": text}
    if text.encode() != value:
        row["value_base64"] = base64.b64encode(value).decode()
    print_json(row)
