"""What a request to Docker's or Podman's API asks for: one HTTP request in, one ``Delegated`` out.

Bodies are read as the daemons' Go does: names of members in any case, the last of two wins, a command may be a list or
one text. What cannot be read is said to be so in ``detail``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote_to_bytes

from agentwatch.protocols.base import Delegated, Detail

if TYPE_CHECKING:
    from agentwatch.protocols.base import Instant
    from agentwatch.protocols.http1 import End, Head

MAX_PATH_BYTES = 512
"""Of a path that is told."""
MAX_ITEMS = 256
"""Elements of a list in ``detail``."""

_ABSOLUTE = re.compile(rb"[a-z][a-z0-9+.-]*://[^/?#]*", re.IGNORECASE)
_VERSION = re.compile(r"/v\d+(?:\.\d+)*(?=/)")
_CREATE = re.compile(r"/containers/create")
_EXEC = re.compile(r"/containers/([^/]+)/exec")
_EXEC_START = re.compile(r"/exec/([^/]+)/start")
_START = re.compile(r"/containers/([^/]+)/(?:start|restart)")
_NAMED = re.compile(
    r"/(containers|exec|images|networks|volumes|pods|plugins|services|secrets|configs|nodes|tasks)/(.+)"
)
_COLLECTION = frozenset({"json", "create", "prune", "search", "load", "get", "ps", "stats", "pull", "import"})
_READING = ("GET ", "HEAD ", "OPTIONS ")
_OWN_PATHS = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE) (?:https?://[^/ ?#]*)?(?:"
    rb"/v[0-9]{1,2}\.[0-9]{1,3}(?:\.[0-9]{1,3})?/(?:libpod/)?(?:containers|exec|images|build|_ping|version|info|events|networks"
    rb"|volumes|auth|commit|system|swarm|services|plugins|session|grpc|distribution|secrets|configs|nodes|tasks|pods"
    rb"|generate|play|manifests)"
    rb"|/_ping|/libpod/_ping|/containers/(?:json|create)"
    rb"|/containers/[^/ ?]+/(?:json|start|stop|restart|kill|exec|attach|wait|logs|archive)"
    rb"|/exec/[^/ ?]+/(?:start|json|resize)|/images/(?:json|create))(?=[/? ])"
)
"""How a connection begins that nothing else than such a client would open."""
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ")
MAX_REQUEST_LINE_BYTES = 2048
"""Of a first line by which the API is recognised."""


def begins_with_request(data: bytes, *, any_path: bool) -> bool | None:
    """Tell whether a connection to the API begins so, None while that cannot be told.

    ``any_path``: the peer is a daemon's socket, so any request will do; else its path must be the API's.
    """
    method = next((one for one in _METHODS if data.startswith(one) or one.startswith(data)), None)
    if method is None:
        return False
    if any_path and len(data) >= len(method):
        return True
    if _OWN_PATHS.match(data):
        return True
    if b"\n" in data or b" " in data[len(method) :] or len(data) > MAX_REQUEST_LINE_BYTES:
        return False
    return None


def only_reads(asked: Delegated) -> bool:
    """Tell whether a request changes nothing."""
    return asked.operation.startswith(_READING)


def request(head: Head, end: End, at: Instant) -> Delegated:
    """Return what a request asks for."""
    target = _ABSOLUTE.sub(b"", head.target, count=1) if not head.target.startswith(b"/") else head.target
    raw_path, _, query = target.partition(b"?")
    path = unquote_to_bytes(raw_path[: 4 * MAX_PATH_BYTES]).decode(errors="backslashreplace")
    path = re.sub("/+", "/", path)[:MAX_PATH_BYTES]
    bare = _VERSION.sub("", path, count=1)
    podman = bare.startswith("/libpod/")
    bare = bare.removeprefix("/libpod")
    method = head.method.decode("latin-1")
    detail: dict[str, Detail] = {"path": path}
    if not end.complete or len(end.body) < end.length:
        detail["truncated"] = True
    given = parse_qs(query[: 4 * MAX_PATH_BYTES].decode("latin-1"))
    for name in ("name", "fromImage", "tag"):
        if name in given:
            detail[name] = _text(given[name][-1])[:MAX_PATH_BYTES]
    operation, command = f"{method} {_without_ids(bare)}", None
    if method == "POST":
        if _CREATE.fullmatch(bare):
            operation, command = "create", _created(end, detail)
        elif found := _EXEC.fullmatch(bare):
            operation, command = "exec", _executed(end, detail)
            detail["container"] = found[1]
        elif found := _EXEC_START.fullmatch(bare):
            operation = "exec_start"
            detail["exec"] = found[1]
        elif found := _START.fullmatch(bare):
            operation = "start"
            detail["container"] = found[1]
    return Delegated("podman" if podman else "docker", operation, command, detail, at, head.offset)


def _without_ids(path: str) -> str:
    """Return a path with ``{id}`` in the place of what names one container, image or the like."""
    found = _NAMED.fullmatch(path)
    if found is None or found[2] in _COLLECTION:
        return path
    parts = found[2].split("/")
    last = parts[-1] if len(parts) > 1 else None
    return f"/{found[1]}/{{id}}" + ("" if last is None else f"/{last}")


def _created(end: End, detail: dict[str, Detail]) -> tuple[bytes, ...] | None:
    body = _json(end, detail)
    host = body.get("hostconfig")
    host = host if isinstance(host, dict) else {}
    _tell(detail, body, ("image", "user", "workingdir", "work_dir", "privileged", "hostname"))
    _tell(
        detail, host, ("binds", "privileged", "pidmode", "networkmode", "ipcmode", "capadd", "cap_add", "volumesfrom")
    )
    mounts = host.get("mounts", body.get("mounts"))
    if isinstance(mounts, list) and mounts:
        detail["mounts"] = [_mount(mount) for mount in mounts[:MAX_ITEMS] if isinstance(mount, dict)]
    for name in ("pidns", "netns", "ipcns"):
        if isinstance(space := body.get(name), dict) and isinstance(mode := space.get("nsmode"), str):
            detail[name] = _text(mode)
    _tell_environment(detail, body.get("env"))
    words = (*_words(body.get("entrypoint")), *_words(body.get("cmd")), *_words(body.get("command")))
    return words or None


def _executed(end: End, detail: dict[str, Detail]) -> tuple[bytes, ...] | None:
    body = _json(end, detail)
    _tell(detail, body, ("user", "workingdir", "privileged"))
    _tell_environment(detail, body.get("env"))
    return _words(body.get("cmd")) or None


def _json(end: End, detail: dict[str, Detail]) -> dict[str, Any]:
    try:
        body = json.loads(end.body.decode(errors="surrogateescape"), object_pairs_hook=_lowered)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        return body
    detail["unreadable"] = True
    return {}


def _lowered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.lower(): value for name, value in pairs}


def _tell(detail: dict[str, Detail], body: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = body.get(name)
        if isinstance(value, list):
            value = [_text(one) for one in value[:MAX_ITEMS] if isinstance(one, str)]
        elif isinstance(value, str):
            value = _text(value)
        if value and isinstance(value, str | bool | list):
            detail[name] = value


def _mount(mount: dict[str, Any]) -> str:
    source, target = (_text(value) if isinstance(value := _either(mount, *names), str) else "" for names in _MOUNT)
    return f"{source}:{target}"


_MOUNT = (("source",), ("target", "destination"))


def _either(mount: dict[str, Any], *names: str) -> object:
    return next((mount[name] for name in names if name in mount), None)


def _tell_environment(detail: dict[str, Detail], given: object) -> None:
    """Tell the names of variables: their values are often secrets."""
    if isinstance(given, dict | list) and given:
        names = [_text(one.partition("=")[0]) for one in given if isinstance(one, str)]
        detail["environment"] = names[:MAX_ITEMS]


def _words(given: object) -> tuple[bytes, ...]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list):
        return ()
    return tuple(_bytes(word) for word in given if isinstance(word, str))


def _bytes(value: str) -> bytes:
    r"""Return the bytes of a text of a body; a lone surrogate, as JSON's ``\ud800`` gives, has none: it is escaped."""
    try:
        return value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return value.encode(errors="backslashreplace")


def _text(value: str) -> str:
    return _bytes(value).decode(errors="backslashreplace")
