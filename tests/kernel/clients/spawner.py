"""Starts many short processes one after the other and says which: a pid, an exit status and a number a line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Start as many processes as the first argument says."""
    lines = []
    for number in range(int(sys.argv[1])):
        program = "/bin/false" if number % 7 == 0 else "/bin/true"
        pid = os.posix_spawn(program, [program, f"number {number}", ""], {})
        _, status = os.waitpid(pid, 0)
        lines.append(f"{pid} {os.waitstatus_to_exitcode(status)} {number}\n")
    sys.stdout.writelines(lines)


if __name__ == "__main__":
    main()
