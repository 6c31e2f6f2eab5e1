"""What it costs to read the log: verifying, evidence, compression, index, a collector, and looking for credentials."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.config_tables import SecretsConfig
from agentwatch.log import checkpoint, folder, merkle, note
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.leafcheck import Nothing
from agentwatch.log.reader import LogReader
from agentwatch.log.sealing import compress
from agentwatch.log.tiles import TileReader
from agentwatch.log.verify import verify
from agentwatch.records.completeness import Completeness
from agentwatch.records.encoding import decode
from agentwatch.records.secrets import Redactor
from bench.log_records import SEED
from bench.timing import in_turn, one_core, seconds
from tests.unit.collector import fix_collector
from tests.unit.collector.log_maker import HostLog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentwatch.log.leafcheck import Examiner
    from agentwatch.records.encoding import Record

STANDALONE = Path(__file__).parent.parent / "agentwatch" / "standalone" / "agentwatch_verify.py"
SINGLE_READS = 1000
"""Anywhere in the log, by a reader that does not know yet where records lie."""
LIMIT_SECONDS = 600


class Packed(NamedTuple):
    """Bytes of the segments before and after compression; bytes a second, of each run."""

    plain_bytes: int
    packed_bytes: int
    rates: list[float]


class Reading(NamedTuple):
    """Records a second of each run, from segments and from compressed ones: of one core's time, but for whole runs."""

    what: str
    records: int
    plain: list[float]
    packed: list[float]


class Bundle(NamedTuple):
    """The evidence of one session: seconds of each run to make it, to prove that many records, to verify it."""

    records: int
    of: int
    bytes: int
    proof_bytes: int
    made: list[float]
    proved: list[float]
    verified: list[float]


class Redacted(NamedTuple):
    """Nanoseconds a record of each run, and how many of the records had something taken out."""

    records: int
    changed: int
    again_ns: list[float]
    new_ns: list[float]


def cli(root: Path, *words: str) -> None:
    """Run the command line on the log in ``root``."""
    config = root / "agentwatch.toml"
    folders = (("log_dir", "log"), ("state_dir", "state"), ("run_dir", "run"), ("cgroup_root", "."))
    config.write_text("".join(f'{key} = "{root / name}"\n' for key, name in folders))
    program = (sys.executable, "-c", "from agentwatch.cli import main; main(prog_name='agentwatch')")
    argv = [*program, *words, "--config", str(config)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=LIMIT_SECONDS)


def standalone(target: Path) -> None:
    """Have it verified without agentwatch."""
    argv = [sys.executable, str(STANDALONE), str(target)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_SECONDS)


def packed_copy(root: Path, copy: Path, runs: int) -> Packed:
    """Copy the log in ``root`` and have all of its segments compressed; the last copy stays."""
    taken = []
    for _ in range(runs):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy)
        paths = [item.path for item in folder.list_segments(copy / "log")]
        plain = sum(path.stat().st_size for path in paths)
        taken.append(seconds(partial(_compress, paths)))
    packed = sum(item.path.stat().st_size for item in folder.list_segments(copy / "log"))
    return Packed(plain, packed, [plain / took for took in taken])


def _compress(paths: Sequence[Path]) -> None:
    for path in paths:
        compress(path, append_only=False)


def reading(what: str, plain: Path, packed: Path, runs: int) -> Reading:
    """Read a log, and its compressed copy, in the way that is named."""
    records = LogReader(plain).end()
    ways = {
        "plain": partial(_rate, _WAYS[what], plain, records),
        "packed": partial(_rate, _WAYS[what], packed, records),
    }
    return Reading(what, records, **in_turn(runs, ways))


def _rate(way: Callable[[Path], float], log_dir: Path, records: int) -> float:
    return records / way(log_dir)


def _verify(log_dir: Path, make_examiner: Callable[[], Examiner] = Nothing) -> None:
    report = verify(log_dir, make_examiner=make_examiner)
    if not report.ok:
        raise RuntimeError(f"{log_dir}: {report.problems[0]}")


def _alone(log_dir: Path, make_examiner: Callable[[], Examiner] = Nothing) -> float:
    with one_core():
        return seconds(partial(_verify, log_dir, make_examiner), process_time)


def _read(log_dir: Path) -> float:
    return seconds(lambda: deque(LogReader(log_dir).records(), maxlen=0), process_time)


def _read_single(log_dir: Path) -> float:
    # As long as all would take, at this rate.
    reader = LogReader(log_dir)
    end = reader.end()
    chance = random.Random(SEED)  # noqa: S311 -- not for secrets
    numbers = [chance.randrange(end) for _ in range(SINGLE_READS)]
    return seconds(lambda: [reader.read(number) for number in numbers], process_time) / SINGLE_READS * end


VERIFY, COMPLETE, TOGETHER = "verify", "verify, with what is missing", "the same, all cores"
ALONE, IN_ORDER, ANYWHERE = "agentwatch_verify.py", "read in order", "1,000 single ones by a new reader"
_WAYS: dict[str, Callable[[Path], float]] = {
    VERIFY: _alone,
    COMPLETE: partial(_alone, make_examiner=Completeness),
    TOGETHER: lambda log_dir: seconds(partial(_verify, log_dir, Completeness)),
    ALONE: lambda log_dir: seconds(partial(standalone, log_dir)),
    IN_ORDER: _read,
    ANYWHERE: _read_single,
}


def bundle(root: Path, session: str, runs: int) -> Bundle:
    """Cut the evidence of a session out of the log in ``root``, which has an index, and check it."""
    log_dir, file = root / "log", root / "evidence.tlog.zip"
    size = Checkpoint.parse(note.parse((log_dir / checkpoint.FILE).read_bytes()).text).size
    found = [seq for seq, payload in LogReader(log_dir).records() if decode(payload).get("session") == session]

    def make() -> None:
        file.unlink(missing_ok=True)
        cli(root, "evidence", session, "-o", str(file))

    ways = {
        "made": partial(seconds, make),
        "proved": partial(seconds, partial(_prove, log_dir, size, found), process_time),
        "verified": partial(seconds, partial(standalone, file)),
    }
    times = in_turn(runs, ways)
    hashes = merkle.HASH_BYTES * _prove(log_dir, size, found)
    return Bundle(len(found), size, file.stat().st_size, hashes, **times)


def _prove(log_dir: Path, size: int, numbers: Sequence[int]) -> int:
    tiles = TileReader(log_dir, size)
    return sum(len(merkle.inclusion_proof(number, size, tiles)) for number in numbers)


def index(root: Path, runs: int) -> list[float]:
    """Return records a second of `agentwatch index`, each time from the beginning."""
    records = LogReader(root / "log").end()
    return [records / seconds(partial(cli, root, "index", "rebuild")) for _ in range(runs)]


def push(root: Path, runs: int) -> list[float]:
    """Return records a second of a push to a collector that has none, over TLS on the loopback."""
    records = LogReader(root / "log").end()
    taken = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=root) as place:
            authority = fix_collector.Authority(Path(place, "authority"))
            collector = fix_collector.Collector(Path(place, "collector"), authority.issue("collector-1"))
            collector.start_process()
            try:
                host = fix_collector.client(HostLog(root), authority.issue("db-agents-1"), collector.port)
                taken.append(seconds(host.push))
            finally:
                collector.stop()
    return [records / took for took in taken]


def redact(payloads: Sequence[bytes], runs: int) -> Redacted:
    """Look through records for credentials: statements that come again, and statements that were never seen."""
    config, key = SecretsConfig(), bytes(32)
    again = [decode(payload) for payload in payloads]
    new = [
        record | {"db.query.text": f"{record['db.query.text']} LIMIT {number}"} if "db.query.text" in record else record
        for number, record in enumerate(again)
    ]
    known = Redactor(config, key)
    changed = sum(known.apply(record) is not record for record in again)

    def look(redactor: Redactor | None, records: Sequence[Record]) -> float:
        apply = (redactor or Redactor(config, key)).apply
        return seconds(lambda: [apply(record) for record in records], process_time) / len(records) * 1e9

    figures = in_turn(runs, {"again_ns": partial(look, known, again), "new_ns": partial(look, None, new)})
    return Redacted(len(again), changed, **figures)
