"""A signed writer in a process of its own: argv is a folder, a count, a batch, a segment size, perhaps a size limit.

It appends records whose content follows from their number, signs, changes keys half way, and compresses what is
sealed, as the recorder does. It prints one JSON object a line: what was acknowledged, what the disk refused.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from pathlib import Path

from agentwatch.errors import AgentwatchError, StoreError
from agentwatch.log import folder, segment
from agentwatch.log.sealing import compress
from agentwatch.log.signed import Options, SignedLog

MAX_STORE_ERRORS = 5
TURN_NS = 2 * 10**9
"""Longer than any pause after an error."""


def payload(seq: int) -> bytes:
    return b"record " + hashlib.shake_128(b"%d" % seq).digest(20 + seq * 37 % 200)


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def commit(log: SignedLog) -> None:
    for _ in range(MAX_STORE_ERRORS):
        try:
            log.writer.commit()
        except StoreError as e:
            say(store_error=str(e), acked=log.writer.durable_seq)
            continue
        say(acked=log.writer.durable_seq)
        return
    raise StoreError("given up")


def change_keys(log: SignedLog, now_ns: int) -> None:
    options = log._options
    log._options = options._replace(epoch_ns=0)
    log.tick(now_ns)
    log._options = options


def seal(log_dir: Path) -> None:
    for item in folder.list_segments(log_dir)[:-1]:
        if not segment.is_compressed(item.path.name):
            try:
                compress(item.path, append_only=False)
            except AgentwatchError as e:
                say(not_compressed=str(e))


def main() -> None:
    root, count, batch, segment_bytes, *limit = sys.argv[1:]
    say(begin=True)
    with SignedLog(Path(root, "log"), Path(root, "keys"), Options("host", segment_bytes=int(segment_bytes))) as log:
        say(opened=log.writer.next_seq, set_aside=log.set_aside and log.set_aside.why)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), int(limit[0])))
        begin = log.writer.next_seq
        now_ns = 0
        while log.writer.next_seq < begin + int(count):
            if begin + int(count) // 2 in range(log.writer.next_seq, log.writer.next_seq + int(batch)):
                change_keys(log, now_ns)
            for _ in range(int(batch)):
                log.writer.append(payload(log.writer.next_seq))
            commit(log)
            now_ns += TURN_NS
            log.tick(now_ns)
            say(signed=log.signed.size if log.signed else 0, fault=log.fault)
        seal(log.log_dir)


if __name__ == "__main__":
    try:
        main()
    except StoreError as e:
        say(given_up=str(e))
        sys.exit(3)
