"""Binary values of PostgreSQL's built-in types as the server prints them: bytes in, int, float or text out.

Out: what the type's output function writes with DateStyle ISO, IntervalStyle postgres, TimeZone UTC, bytea_output
hex and extra_float_digits 1; int and float for the types that are numbers to JSON too (NaN and infinities are text).
Raises BadValue, struct.error or ValueError for bytes that are no value of the type; the caller keeps those as they
are.

Specification: typsend and typoutput functions in src/backend/utils/adt, OIDs in src/include/catalog/pg_type.dat.
"""

from __future__ import annotations

import ipaddress
import math
import struct
import uuid
from typing import TYPE_CHECKING

from agentwatch.protocols.postgres_jsonb import jsonb_text

if TYPE_CHECKING:
    from collections.abc import Callable

Value = int | float | str

INTEGER_OIDS = frozenset({20, 21, 23, 26})
FLOAT_OIDS = frozenset({700, 701})

MAX_ARRAY_ITEMS = 1_000_000
"""An array with more items stays bytes: its text would be many times its size."""
MAX_NUMERIC_DIGITS = 200_000
"""More than a numeric can have (131,072 before and 16,383 after the point)."""
_MAX_DIMENSIONS = 6
_NUMERIC_BASE = 10_000
_FIXED_FROM = -4
_USECS_PER_DAY = 86_400_000_000
_POSTGRES_EPOCH_JDATE = 2451545
_INFINITE_64 = 0x7FFFFFFFFFFFFFFF
_INFINITE_32 = 0x7FFFFFFF


class BadValue(Exception):
    """The bytes are no value of the type."""


def _unpack(form: str, raw: bytes) -> tuple[int, ...]:
    if struct.calcsize(form) != len(raw):
        raise BadValue
    return struct.unpack(form, raw)


def _int2(raw: bytes) -> int:
    return _unpack(">h", raw)[0]


def _int4(raw: bytes) -> int:
    return _unpack(">i", raw)[0]


def _int8(raw: bytes) -> int:
    return _unpack(">q", raw)[0]


def _oid(raw: bytes) -> int:
    return _unpack(">I", raw)[0]


def _bool(raw: bytes) -> str:
    if len(raw) != 1:
        raise BadValue
    return "t" if raw != b"\0" else "f"


def _float8(raw: bytes) -> Value:
    value: float = _unpack(">d", raw)[0]
    return value if math.isfinite(value) else _not_finite(value)


def _float4(raw: bytes) -> Value:
    value: float = _unpack(">f", raw)[0]
    if not math.isfinite(value):
        return _not_finite(value)
    return float(_shortest_float4(value, raw))


def _shortest_float4(value: float, raw: bytes) -> str:
    # f2s.c takes no number that lies exactly between two floats, though it would be read as this one.
    near = float.fromhex("0x1p-150") if not any(raw[1:]) and raw[0] in (0, 0x80) else _half_step(value, raw)
    for digits in range(1, 9):
        text = f"{value:.{digits}g}"
        if abs(float(text) - value) < near:
            return text
    return f"{value:.9g}"


def _half_step(value: float, raw: bytes) -> float:
    """Return half the distance to the float4 below in magnitude, the smaller one of the two neighbours."""
    below: float = struct.unpack(">f", (int.from_bytes(raw, "big") - 1).to_bytes(4, "big"))[0]
    return abs(value - below) / 2


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def float_text(value: float, fixed_below: int = 15) -> str:
    """Write a finite float as float8out does; ``fixed_below`` is 6 for float4out (src/common/d2s.c, f2s.c)."""
    mantissa, exponent_text = f"{_shortest(value)}".split("e")
    exponent = int(exponent_text)
    sign, digits = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
    digits = digits.replace(".", "").rstrip("0") or "0"
    if not _FIXED_FROM <= exponent < fixed_below:
        point = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{point}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    digits = digits.ljust(exponent + 1, "0")
    whole, fraction = digits[: exponent + 1], digits[exponent + 1 :]
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def _shortest(value: float) -> str:
    digits = repr(value)
    if "e" in digits:
        return digits
    significant = len(digits.lstrip("-").replace(".", "").lstrip("0").rstrip("0")) if value else 1
    return f"{value:.{max(significant, 1) - 1}e}"


def _text(raw: bytes) -> str:
    return raw.decode()


def _bytea(raw: bytes) -> str:
    return "\\x" + raw.hex()


def _jsonb(raw: bytes) -> str:
    if raw[:1] != b"\x01":
        raise BadValue
    return jsonb_text(raw[1:].decode())


def _uuid(raw: bytes) -> str:
    return str(uuid.UUID(bytes=raw))


def _numeric(raw: bytes) -> str:
    count, weight, sign, scale = struct.unpack_from(">HhHH", raw)
    if sign in _NUMERIC_SPECIAL:
        return _NUMERIC_SPECIAL[sign]
    if len(raw) != 8 + 2 * count or sign not in (0, 0x4000) or 4 * max(count, abs(weight)) > MAX_NUMERIC_DIGITS:
        raise BadValue
    groups = struct.unpack_from(f">{count}H", raw, 8)
    if any(group >= _NUMERIC_BASE for group in groups):
        raise BadValue
    digits = "".join(f"{group:04d}" for group in groups)
    point = 4 * (weight + 1)
    if point < 0:
        digits, point = "0" * -point + digits, 0
    whole = digits[:point].ljust(point, "0").lstrip("0") or "0"
    fraction = digits[point : point + scale].ljust(scale, "0")
    text = f"{whole}.{fraction}" if scale else whole
    return f"-{text}" if sign else text


_NUMERIC_SPECIAL = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}


def _date_text(days: int) -> tuple[str, str]:
    # j2date() of src/backend/utils/adt/datetime.c: datetime.date ends at the year 9999, PostgreSQL's does not.
    julian = days + _POSTGRES_EPOCH_JDATE + 32044
    quad, extra = divmod(julian, 146097)
    extra = extra * 4 + 3
    julian += 60 + quad * 3 + extra // 146097
    quad, julian = divmod(julian, 1461)
    y = julian * 4 // 1461
    julian = ((julian + 305) % 365 if y else (julian + 306) % 366) + 123
    year = y + quad * 4 - 4800
    quad = julian * 2141 // 65536
    day = julian - 7834 * quad // 256
    month = (quad + 10) % 12 + 1
    return f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}", " BC" if year <= 0 else ""


def _clock_text(usecs: int) -> str:
    seconds, fraction = divmod(usecs, 1_000_000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return text + (f".{fraction:06d}".rstrip("0") if fraction else "")


def _date(raw: bytes) -> str:
    days = _int4(raw)
    if days in (_INFINITE_32, -_INFINITE_32 - 1):
        return "infinity" if days > 0 else "-infinity"
    return "".join(_date_text(days))


def _moment(raw: bytes, zone: str) -> str:
    usecs = _int8(raw)
    if usecs in (_INFINITE_64, -_INFINITE_64 - 1):
        return "infinity" if usecs > 0 else "-infinity"
    days, rest = divmod(usecs, _USECS_PER_DAY)
    date, era = _date_text(days)
    return f"{date} {_clock_text(rest)}{zone}{era}"


def _timestamp(raw: bytes) -> str:
    return _moment(raw, "")


def _timestamptz(raw: bytes) -> str:
    return _moment(raw, "+00")


def _time(raw: bytes) -> str:
    usecs = _int8(raw)
    if not 0 <= usecs <= _USECS_PER_DAY:
        raise BadValue
    return _clock_text(usecs)


def _timetz(raw: bytes) -> str:
    _usecs, zone = _unpack(">qi", raw)
    east, text = -zone, _time(raw[:8])
    sign, east = ("-", -east) if east < 0 else ("+", east)
    text += f"{sign}{east // 3600:02d}"
    if east % 3600:
        text += f":{east // 60 % 60:02d}"
    return text + (f":{east % 60:02d}" if east % 60 else "")


def _interval(raw: bytes) -> str:
    usecs, days, months = _unpack(">qii", raw)
    years, months = int(math.copysign(abs(months) // 12, months)), int(math.copysign(abs(months) % 12, months))
    parts: list[str] = []
    before_negative = False
    for value, unit in ((years, "year"), (months, "mon"), (days, "day")):
        if value:
            parts.append(f"{'+' if before_negative and value > 0 else ''}{value} {unit}{'' if value == 1 else 's'}")
            before_negative = value < 0
    if usecs or not parts:
        sign = "-" if usecs < 0 else "+" if before_negative else ""
        parts.append(sign + _clock_text(abs(usecs)))
    return " ".join(parts)


def _inet(raw: bytes) -> str:
    family, bits, is_cidr, size = struct.unpack_from("BBBB", raw)
    if len(raw) != 4 + size or (family, size) not in ((2, 4), (3, 16)):
        raise BadValue
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(raw[4:])
    text = str(address)
    if isinstance(address, ipaddress.IPv6Address) and raw[4:14] == bytes(10) and raw[14:16] in (b"\xff\xff", b"\0\0"):
        text = _mapped(raw[4:], text)
    return text if bits == 8 * size and not is_cidr else f"{text}/{bits}"


def _mapped(raw: bytes, text: str) -> str:
    # inet_net_ntop() writes addresses with an embedded IPv4 address in dots.
    if raw[10:12] == b"\xff\xff" or int.from_bytes(raw[12:], "big") > 0xFFFF:  # noqa: PLR2004 - more than the last group
        return ("::ffff:" if raw[10:12] == b"\xff\xff" else "::") + str(ipaddress.IPv4Address(raw[12:]))
    return text


def _macaddr(raw: bytes) -> str:
    if len(raw) not in (6, 8):
        raise BadValue
    return raw.hex(":")


def _bit(raw: bytes) -> str:
    count = _oid(raw[:4])
    if len(raw) != 4 + (count + 7) // 8:
        raise BadValue
    return "".join(f"{byte:08b}" for byte in raw[4:])[:count]


def _pg_lsn(raw: bytes) -> str:
    high, low = _unpack(">II", raw)
    return f"{high:X}/{low:X}"


def _char(raw: bytes) -> str:
    if len(raw) != 1:
        raise BadValue
    # charout() since PostgreSQL 16 writes high bytes in octal; older ones write the byte.
    return raw.decode("ascii") if raw != b"\0" else ""


def _point(raw: bytes) -> str:
    x, y = (_item_text(_float8(raw[pos : pos + 8])) for pos in (0, 8))
    return f"({x},{y})"


def _bad() -> str:
    raise BadValue


def _item_text(value: Value, fixed_below: int = 15) -> str:
    return float_text(value, fixed_below) if isinstance(value, float) else str(value)


def _array(raw: bytes, decode: Callable[[bytes], Value], fixed_below: int) -> str:
    dimensions, has_null, _element = struct.unpack_from(">iiI", raw)
    if not 0 <= dimensions <= _MAX_DIMENSIONS or has_null not in (0, 1):
        raise BadValue
    shape = [struct.unpack_from(">ii", raw, 12 + 8 * number) for number in range(dimensions)]
    total = math.prod(size for size, _ in shape) if shape else 0
    if any(size <= 0 for size, _ in shape) or total > MAX_ARRAY_ITEMS:
        raise BadValue
    items: list[str] = []
    pos = 12 + 8 * dimensions
    for _ in range(total):
        (length,) = struct.unpack_from(">i", raw, pos)
        pos += 4
        if length < 0:
            items.append("NULL")
            continue
        if pos + length > len(raw):
            raise BadValue
        items.append(_quoted(_item_text(decode(raw[pos : pos + length]), fixed_below)))
        pos += length
    if pos != len(raw):
        raise BadValue
    if not total:
        return "{}"
    for size, _ in reversed(shape):
        items = ["{" + ",".join(items[i : i + size]) + "}" for i in range(0, len(items), size)]
    bounds = "".join(f"[{low}:{low + size - 1}]" for size, low in shape) + "="
    return items[0] if all(low == 1 for _, low in shape) else bounds + items[0]


def _quoted(text: str) -> str:
    if text and text.upper() != "NULL" and not any(c in '{},"\\ \t\n\r\v\f' for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _range(raw: bytes, decode: Callable[[bytes], Value]) -> str:
    if not raw:
        raise BadValue
    flags, pos = raw[0], 1
    if flags & 0x01:
        return "empty" if len(raw) == 1 else _bad()
    ends: list[str] = []
    for infinite in (flags & 0x08, flags & 0x10):
        if infinite:
            ends.append("")
            continue
        (length,) = struct.unpack_from(">i", raw, pos)
        pos += 4
        if length < 0 or pos + length > len(raw):
            raise BadValue
        ends.append(_range_quoted(_item_text(decode(raw[pos : pos + length]))))
        pos += length
    if pos != len(raw):
        raise BadValue
    return f"{'[' if flags & 0x02 else '('}{ends[0]},{ends[1]}{']' if flags & 0x04 else ')'}"


def _range_quoted(text: str) -> str:
    if text and not any(c in '()[],"\\ \t\n\r\v\f' for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '""')
    return f'"{escaped}"'


_SCALARS: dict[int, tuple[Callable[[bytes], Value], int]] = {
    # type OID: (decoder, OID of its array)
    16: (_bool, 1000),
    17: (_bytea, 1001),
    18: (_char, 1002),
    19: (_text, 1003),
    20: (_int8, 1016),
    21: (_int2, 1005),
    23: (_int4, 1007),
    25: (_text, 1009),
    26: (_oid, 1028),
    114: (_text, 199),
    142: (_text, 143),
    600: (_point, 1017),
    650: (_inet, 651),
    700: (_float4, 1021),
    701: (_float8, 1022),
    705: (_text, 0),
    774: (_macaddr, 775),
    829: (_macaddr, 1040),
    869: (_inet, 1041),
    1042: (_text, 1014),
    1043: (_text, 1015),
    1082: (_date, 1182),
    1083: (_time, 1183),
    1114: (_timestamp, 1115),
    1184: (_timestamptz, 1185),
    1186: (_interval, 1187),
    1266: (_timetz, 1270),
    1560: (_bit, 1561),
    1562: (_bit, 1563),
    1700: (_numeric, 1231),
    2950: (_uuid, 2951),
    3220: (_pg_lsn, 3221),
    3802: (_jsonb, 3807),
}
_RANGES = {3904: 23, 3906: 1700, 3908: 1114, 3910: 1184, 3912: 1082, 3926: 20}


class _ArrayOf:
    """A decoder of arrays of one element type."""

    def __init__(self, element: int) -> None:
        self._decode = _SCALARS[element][0]
        self._fixed_below = 6 if element == 700 else 15  # noqa: PLR2004 - float4

    def __call__(self, raw: bytes) -> str:
        return _array(raw, self._decode, self._fixed_below)


class _RangeOf:
    """A decoder of ranges over one element type."""

    def __init__(self, element: int) -> None:
        self._decode = _SCALARS[element][0]

    def __call__(self, raw: bytes) -> str:
        return _range(raw, self._decode)


BINARY: dict[int, Callable[[bytes], Value]] = (
    {oid: decode for oid, (decode, _) in _SCALARS.items()}
    | {array: _ArrayOf(oid) for oid, (_, array) in _SCALARS.items() if array}
    | {oid: _RangeOf(element) for oid, element in _RANGES.items()}
)
