"""A writer in a process of its own: argv is the log's folder, a count, a batch and a segment size.

It appends records whose content follows from their number and prints one JSON object a line: what was
acknowledged, what the disk did to it.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from pathlib import Path

from agentwatch.errors import StoreError
from agentwatch.log.writer import LogWriter

MAX_STORE_ERRORS = 5


def payload(seq: int) -> bytes:
    return hashlib.shake_128(b"%d" % seq).digest(20 + seq * 37 % 400)


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def commit(log: LogWriter) -> None:
    for _ in range(MAX_STORE_ERRORS):
        try:
            log.commit()
        except StoreError as e:
            say(store_error=str(e), durable=log.durable_seq)
            continue
        say(acked=log.durable_seq)
        return
    raise StoreError("given up")


def main() -> None:
    log_dir, count, batch, segment_bytes, *limit = sys.argv[1:]
    with LogWriter(Path(log_dir), segment_bytes=int(segment_bytes)) as log:
        say(opened=log.next_seq, torn_bytes=log.torn_bytes, damage=len(log.damage))
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), int(limit[0])))
        end = log.next_seq + int(count)
        while log.next_seq < end:
            for _ in range(int(batch)):
                log.append(payload(log.next_seq))
            commit(log)
        say(faults=[[fault.operation, fault.errno, fault.first_seq, fault.records] for fault in log.faults])


if __name__ == "__main__":
    try:
        main()
    except StoreError:
        sys.exit(3)
