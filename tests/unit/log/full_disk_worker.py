"""A signed log on a disk of its own, a small tmpfs, that fills up while keys are to be changed.

argv is a folder that the caller's mount namespace does not share, a folder for keys, and what is done about it:
``wait`` until there is space, ``reserve``: use what was kept back, ``drop``: give up the record of the epoch. Prints
what came of it as one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agentwatch.errors import StoreError
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.verify import verify

DISK_BYTES = 16 * 1024 * 1024
TURN_NS = 2 * 10**9


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def change_keys(log: SignedLog, now_ns: int) -> None:
    options = log._options
    log._options = options._replace(epoch_ns=0)
    log.tick(now_ns)
    log._options = options


def scenario(log: SignedLog, filler: Path, what: str) -> dict[str, object]:
    for number in range(10):
        log.writer.append(b"before %d" % number)
    log.sign()
    fill(filler)
    refused = append_until_refused(log)
    # What waits would be refused before the keys are changed at all.
    log.writer.drop_waiting()
    log.sign()
    before = log.signed
    change_keys(log, TURN_NS)
    fault, kept = log.fault, log.writer.next_seq - log.writer.durable_seq
    log.tick(2 * TURN_NS)
    unsigned = log.signed == before
    if what == "drop":
        log.writer.drop_waiting()
        log.writer.append(b"the last words")
    if what != "wait":
        log.writer.commit(reserve=True)
        log.tick(3 * TURN_NS)
    last = log.fault
    filler.unlink()
    log.writer.commit()
    log.tick(5 * TURN_NS)
    if what == "drop":
        change_keys(log, 7 * TURN_NS)
    log.writer.append(b"after")
    log.sign()
    faults = {"fault": fault, "last": last, "after": log.fault}
    return faults | {"refused": refused, "waited": kept, "unsigned": unsigned}


def append_until_refused(log: SignedLog) -> bool:
    for number in range(20_000):
        log.writer.append(b"x" * 1000 + b"%d" % number)
        try:
            log.writer.commit()
        except StoreError:
            return True
    return False


def main() -> None:
    disk, key_dir, what = sys.argv[1:]
    log_dir = Path(disk, "log")
    with SignedLog(log_dir, Path(key_dir), Options("host")) as log:
        result = scenario(log, Path(disk, "filler"), what)
        end = log.writer.next_seq
    with SignedLog(log_dir, Path(key_dir), Options("host")) as log:
        result["set_aside"] = log.set_aside and log.set_aside.why
    report = verify(log_dir)
    result |= {"ok": report.ok, "epochs": report.epochs, "signed": report.signed == log.signed}
    result["all"] = log.writer.next_seq == end == report.framing.next_seq
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
