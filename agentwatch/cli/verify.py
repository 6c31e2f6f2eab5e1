"""``agentwatch verify``: whether the log is what was written, and, apart from that, how much was seen."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentwatch.anchors import witnesses
from agentwatch.cli import reads
from agentwatch.cli.common import moment, pass_config
from agentwatch.cli.output import Progress, print_json
from agentwatch.cli.safe import printable
from agentwatch.errors import NotFoundError
from agentwatch.log import note
from agentwatch.log.verify import Report, read_note, verify
from agentwatch.query import times
from agentwatch.records.completeness import Completeness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentwatch.config import Config
    from agentwatch.log.framing import Problem

INTACT = 0
BROKEN = 1
MAX_PRINTED = 20
"""Problems printed for people; --json has all that the check kept."""

_EPILOG = """\
Two verdicts. Integrity: every record has its checksum and its place, the tree over them leads to the checkpoint, and
the keys that signed it were certified one by the other from the identity of the host on. Completeness: what the log
itself says was not seen.

Who has root now can sign for what is younger than the present key (an hour at the most). --against closes that: a
checkpoint that was kept elsewhere (`agentwatch checkpoint`, or the collector's) proves everything up to it. Without
--identity or --against the log is only proved to belong to the identity in its own folder.

Exit status: 0 intact, 1 broken. An end that is not whole is not damage: a crash leaves it, and so does a recorder that
is writing at this moment. Errors as in `agentwatch --help`.
"""


def _keys(_ctx: click.Context, _param: click.Parameter, typed: tuple[str, ...]) -> tuple[note.Key, ...]:
    try:
        return tuple(note.Key.parse(vkey) for vkey in typed)
    except note.NoteError as e:
        raise click.BadParameter(str(e)) from e


def _identity(_ctx: click.Context, _param: click.Parameter, typed: str | None) -> note.Key | None:
    if typed is None:
        return None
    path = Path(typed)
    try:
        return note.Key.parse(path.read_text(encoding="utf-8") if path.is_file() else typed)
    except (note.NoteError, UnicodeDecodeError) as e:
        raise click.BadParameter(f"not a vkey, nor a file with one: {e}") from e


@click.command(epilog=_EPILOG)
@click.option(
    "--against",
    metavar="CHECKPOINT",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A checkpoint that was kept elsewhere; may be repeated.",
)
@click.option("--identity", metavar="VKEY", callback=_identity, help="The identity of the host: a vkey, or a file.")
@click.option(
    "--cosigner",
    "cosigners",
    metavar="VKEY",
    multiple=True,
    callback=_keys,
    help="A collector's key: checkpoints that it cosigned are checked too. Default: [push] collector_key.",
)
@click.option("--since", metavar="TIME", callback=moment, help="Read only segments with records after this.")
@click.option(
    "--log", "log_dir", metavar="DIR", type=click.Path(path_type=Path), help="A copy of a log. Default: log_dir."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_config
def command(  # noqa: PLR0913 -- the options
    config: Config,
    /,
    *,
    against: tuple[Path, ...],
    identity: note.Key | None,
    cosigners: tuple[note.Key, ...],
    since: int | None,
    log_dir: Path | None,
    as_json: bool,
) -> None:
    """Check the whole log: framing, tree, signatures; and say how complete the observation was."""
    where = log_dir or config.log_dir
    if not where.is_dir():
        raise NotFoundError(f"there is no log at {where}; the recorder makes it (agentwatch record)")
    if log_dir is None:
        reads.report(config)
    anchors = witnesses.find(where, cosigners or _configured(config), config.log.timestamp_roots)
    progress = Progress("checking")
    try:
        report = verify(
            where,
            identity=identity,
            against=[*(read_note(path) for path in against), *anchors.checkpoints],
            since_ns=since,
            make_examiner=Completeness,
            progress=progress,
        )
    finally:
        progress.finish()
    if as_json:
        print_json(_as_row(report) | {"witnessed": anchors.said, "unfit_anchors": anchors.unfit})
    else:
        for line in (*anchors.said, *anchors.unfit):
            click.echo(printable(line))
        _print(report)
    click.get_current_context().exit(INTACT if report.ok else BROKEN)


def _configured(config: Config) -> tuple[note.Key, ...]:
    key = config.push.collector_key
    return () if key is None else (note.Key.parse(key),)


def _print(report: Report) -> None:
    framing = report.framing
    click.echo(
        f"{framing.log_dir}: {framing.records} records in {framing.segments} segments, {framing.bytes} bytes"
        + (f"; {report.unread} older segments were not read" if report.unread else "")
    )
    for problem in report.problems[:MAX_PRINTED]:
        click.echo(printable(f"broken: {_describe(problem)}"))
    if len(report.problems) > MAX_PRINTED:
        click.echo(f"broken: {len(report.problems) - MAX_PRINTED} more places")
    if framing.torn is not None:
        click.echo(f"the last write is not whole ({framing.torn_bytes} bytes): not damage; the recorder removes it")
    for path in framing.aside:
        click.echo(printable(f"kept aside: {path}"))
    for path in framing.foreign:
        click.echo(printable(f"no part of a log: {path}"))
    for line in _limits(report):
        click.echo(printable(line))
    click.echo(f"integrity: {_integrity(report)}")
    if isinstance(report.examined, Completeness):
        click.echo(f"completeness: {_completeness(report.examined, _unreadable(report))}")


def _integrity(report: Report) -> str:
    if report.broken_at is not None:
        return f"BROKEN at record {report.broken_at}: {printable(report.problems[0].how)}"
    signed = report.signed
    proved = f"intact: {signed.size} records under a chain of {report.epochs} keys" if signed else "intact"
    return proved + "".join(f", as in the checkpoint of {kept.size} records" for kept in report.against)


def _limits(report: Report) -> list[str]:
    lines = []
    if report.unsigned and report.signed is not None:
        lines.append(f"not signed yet: {report.unsigned} records from {report.signed.size} on")
    if report.pruned:
        lines.append(f"pruned: {report.pruned} records, named by the log itself")
    if report.skipped:
        lines.append(f"skipped: {report.skipped} numbers that no record has, signed as such")
    if report.identity is not None and not report.identity_given:
        lines.append(f"identity: {report.identity}, as the log's own folder says")
    return lines


def _unreadable(report: Report) -> int:
    return sum(problem.lost for problem in report.framing.problems) - report.pruned - report.skipped


def _completeness(seen: Completeness, unreadable: int) -> str:
    ended = f"; the log ends at {times.local(end)}" if (end := seen.end()) is not None else ""
    ended += "" if not ended or seen.ended else " without a recorder's goodbye, as while one runs"
    if seen.complete and not unreadable:
        return f"complete, as far as the log tells{ended}"
    parts = [
        *([f"{unreadable} records that cannot be read"] if unreadable else []),
        *_counts("gap", seen.gaps, seen.gap_bytes),
        *_counts("opaque flow", seen.opaque, seen.opaque_bytes),
        *_counts("divergence", seen.divergences, {}),
        *([f"{seen.silence_count} silences of the recorder"] if seen.silence_count else []),
        *([f"{seen.undecodable} records that are none"] if seen.undecodable else []),
    ]
    return f"{'; '.join(map(printable, parts))}{ended}"


def _counts(what: str, numbers: Mapping[str, int], sizes: Mapping[str, int]) -> list[str]:
    return [
        f"{number} {what}{'' if number == 1 else 's'} ({name}{f', {sizes[name]} bytes' if sizes.get(name) else ''})"
        for name, number in sorted(numbers.items())
        if number
    ]


def _describe(problem: Problem) -> str:
    lost = f"; records {problem.seq} to {problem.next_seq - 1}" if problem.lost > 1 else f"; record {problem.seq}"
    at = f" at byte {problem.offset}" if problem.offset else ""
    return f"{problem.path}{at}: {problem.how}{lost}"


def _as_row(report: Report) -> dict[str, Any]:
    framing, seen = report.framing, report.examined
    row: dict[str, Any] = {
        "intact": report.ok,
        "broken_at": report.broken_at,
        "records": framing.records,
        "segments": framing.segments,
        "unread_segments": report.unread,
        "bytes": framing.bytes,
        "checkpoint": None if report.signed is None else _checkpoint(report.signed),
        "epochs": report.epochs,
        "identity": None if report.identity is None else str(report.identity),
        "identity_given": report.identity_given,
        "against": [_checkpoint(kept) for kept in report.against],
        "unsigned": report.unsigned,
        "pruned": report.pruned,
        "skipped": report.skipped,
        "problem_count": len(report.problems),
        "problems": [{**p._asdict(), "path": str(p.path)} for p in report.problems],
        "torn_bytes": framing.torn_bytes,
        "aside": [str(path) for path in framing.aside],
        "foreign": [str(path) for path in framing.foreign],
    }
    if isinstance(seen, Completeness):
        names = ("kinds", "gaps", "gap_bytes", "opaque", "opaque_bytes", "divergences", "undecodable")
        row["unreadable"] = _unreadable(report)
        row["complete"] = seen.complete and not row["unreadable"]
        row["completeness"] = {name: getattr(seen, name) for name in names} | {
            "silences": [silence._asdict() for silence in seen.silences],
            "silence_count": seen.silence_count,
            "ended": seen.ended,
        }
    return row


def _checkpoint(found: Any) -> dict[str, Any]:
    return {"origin": found.origin, "size": found.size, "root": base64.b64encode(found.root).decode()}
