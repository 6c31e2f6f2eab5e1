"""What the index cannot tell of a statement; shared by the one that derives it and those that answer."""

from __future__ import annotations

from enum import IntFlag


class Doubt(IntFlag):
    """What is not known of a statement, so that an answer without rows is not taken for a no."""

    TABLES_UNKNOWN = 1
    TABLES_PARTIAL = 2
    DATABASE_UNKNOWN = 4
    TEXT_UNKNOWN = 8
    TEXT_CUT = 16
    SESSION_UNKNOWN = 32
