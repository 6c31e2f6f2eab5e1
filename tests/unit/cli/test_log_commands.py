"""What an operator does with the signed log: ``checkpoint``, ``verify``, ``evidence``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from agentwatch.anchors import store
from agentwatch.cli import main
from agentwatch.log import note
from agentwatch.log.signed import Options, SignedLog
from agentwatch.records.encoding import encode
from agentwatch.standalone import agentwatch_verify
from tests.unit.log_builder import OTHER_SESSION, SESSION, LogBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentwatch.config import Config

RECORDS = 300
COSIGNER = note.Cosigner("collector.example", bytes(32))


@pytest.fixture
def agentwatch(config_file: Path) -> Callable[..., Result]:
    def call(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--config", str(config_file)])

    return call


@pytest.fixture
def signed(config: Config, log: LogBuilder) -> Config:
    """Write a log in which two sessions take turns."""
    log.start()
    log.start(session=OTHER_SESSION)
    for number in range(RECORDS):
        log.statement("SELECT 1 FROM orders", session=OTHER_SESSION if number % 3 else SESSION)
    numbers = {SESSION: 0, OTHER_SESSION: 0}
    with SignedLog(config.log_dir, config.keys_path, Options("host")) as writer:
        for record in log.records:
            if (session := record.get("session")) is not None:
                record |= {"session_seq": numbers[session]}
                numbers[session] += 1
            writer.writer.append(encode(record))
    return config


@pytest.mark.usefixtures("signed")
def test_checkpoint_that_was_kept_proves_the_log_and_a_cut_one_is_broken(
    agentwatch: Callable[..., Result], config: Config, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_text(agentwatch("checkpoint").stdout)
    identity = agentwatch("checkpoint", "--identity").stdout
    result = agentwatch("verify", "--against", str(kept), "--identity", identity.strip())
    assert result.exit_code == 0, result.output
    assert f"as in the checkpoint of {RECORDS + 3} records" in result.stdout
    config.log_dir.rename(tmp_path / "the real one")
    with SignedLog(config.log_dir, tmp_path / "other keys", Options("host")) as other:
        other.writer.append(b"\x81\xa4kind\xa4exec")
    assert agentwatch("verify").exit_code == 0  # by itself it is a log in order
    result = agentwatch("verify", "--against", str(kept))
    assert result.exit_code == 1
    assert "this one took its place" in result.stdout


def test_verify_without_a_log_is_not_found(agentwatch: Callable[..., Result]) -> None:
    assert agentwatch("verify").exit_code == 66
    assert agentwatch("checkpoint").exit_code == 66


@pytest.mark.usefixtures("signed")
def test_verify_says_in_json_what_it_says_to_people(agentwatch: Callable[..., Result]) -> None:
    row = json.loads(agentwatch("verify", "--json").stdout)
    assert row["intact"] is True
    assert row["broken_at"] is None
    assert row["checkpoint"]["size"] == row["records"] == RECORDS + 3
    assert row["complete"] is True
    assert row["completeness"]["kinds"] == {"epoch": 1, "session_start": 2, "statement": RECORDS}


@pytest.mark.usefixtures("signed")
def test_cosigned_checkpoints_are_held_against_the_log(agentwatch: Callable[..., Result], config: Config) -> None:
    current = (config.log_dir / "checkpoint").read_bytes()
    cosigned = note.parse(current).signed_by(COSIGNER, int(time.time()))
    size = current.split(b"\n")[1].decode()
    anchors = config.log_dir / store.FOLDER
    anchors.mkdir()
    (anchors / f"{size}.{COSIGNER.key.name}").write_text(str(cosigned))
    assert "cosigned: " not in agentwatch("verify").stdout  # by whom we do not know
    result = agentwatch("verify", "--cosigner", str(COSIGNER.key))
    assert result.exit_code == 0
    assert f"cosigned: collector.example saw the first {size} records" in result.stdout
    assert f"as in the checkpoint of {size} records" in result.stdout
    stranger = note.Key(COSIGNER.key.name, note.COSIGNATURE, os.urandom(32))
    assert "cosigned: " not in agentwatch("verify", "--cosigner", str(stranger)).stdout


@pytest.mark.usefixtures("signed")
def test_evidence_of_a_session_is_proved_by_the_standalone_verifier(
    agentwatch: Callable[..., Result], config: Config, tmp_path: Path
) -> None:
    bundle = tmp_path / "case.tlog.zip"
    made = json.loads(agentwatch("evidence", SESSION, "-o", str(bundle), "--json").stdout)
    assert made["records"] == 1 + RECORDS // 3
    script = tmp_path / "verifier.py"
    script.write_bytes(Path(agentwatch_verify.__file__).read_bytes())
    identity = (config.log_dir / "identity").read_text().strip()
    command = [sys.executable, "-I", str(script), "--identity", identity, str(bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    content = bundle.read_bytes()
    assert agentwatch("evidence", SESSION, "-o", str(bundle)).exit_code == 74  # nothing is overwritten
    assert bundle.read_bytes() == content


@pytest.mark.usefixtures("signed")
def test_evidence_of_nothing_is_not_found_and_leaves_no_file(agentwatch: Callable[..., Result], tmp_path: Path) -> None:
    bundle = tmp_path / "case.tlog.zip"
    assert agentwatch("evidence", "01900000-0000-7000-8000-000000000000", "-o", str(bundle)).exit_code == 66
    assert not bundle.exists()
