"""What is asked of Docker's API, and the rules of ``protocols.base`` at every split, cut, gap and save."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.protocols.base import Direction, Message, Omitted, Opaque
from agentwatch.protocols.docker import MAX_HELD_BYTES, MAX_PATHS, DockerDecoder
from agentwatch.protocols.http1 import MAX_BODY_BYTES, MAX_HEAD_BYTES
from tests.unit.protocols.fix_delegation import AT, IN, OUT, Turn, answer, delegated, docker_conversation, http, run

CREATED = (b"/bin/sh", b"-c", b"echo", b"hello")
CREATE = "/v1.47/containers/create"


def decode(*turns: Turn) -> list[Message]:
    return run(list(turns), DockerDecoder())


def short(messages: list[Message]) -> list[tuple[str, Any, Any]]:
    return [(m.operation, m.command, m.detail.get("status")) for m in delegated(messages)]


def test_a_conversation_tells_what_was_asked_and_answered() -> None:
    found = run(docker_conversation(), DockerDecoder())
    assert short(found) == [
        ("HEAD /_ping", None, 200),
        ("create", CREATED, 201),
        ("start", None, 204),
        ("GET /containers/{id}/json", None, 200),
        ("exec", (b"date",), 201),
        ("exec_start", None, 101),
    ]
    assert delegated(found)[1].detail == {
        "path": CREATE,
        "name": "c1",
        "image": "alpine",
        "binds": ["/:/host"],
        "privileged": True,
        "pidmode": "host",
        "environment": ["TOKEN"],
        "status": 201,
    }
    assert found[-1] == Opaque("upgraded", AT, (0, 3))
    assert b"secret" not in pickle.dumps(found)


def test_every_split_point_and_byte_by_byte_are_the_same() -> None:
    turns = docker_conversation()
    whole = run(turns, DockerDecoder())
    for number, (direction, data) in enumerate(turns):
        for at in range(1, len(data)):
            pieces = [*turns[:number], (direction, data[:at]), (direction, data[at:]), *turns[number + 1 :]]
            assert delegated(run(pieces, DockerDecoder())) == delegated(whole)
    single = run([(d, data[i : i + 1]) for d, data in turns for i in range(len(data))], DockerDecoder())
    assert delegated(single) == delegated(whole)
    assert [m._replace(undecoded=(0, 0)) for m in (single[-1], whole[-1]) if isinstance(m, Opaque)] == [
        Opaque("upgraded", AT)
    ] * 2


def test_saved_and_loaded_at_every_piece_is_the_same() -> None:
    decoder = DockerDecoder()
    messages: list[Message] = []
    for direction, data in docker_conversation():
        for at in range(0, len(data), 3):
            messages += decoder.feed(direction, data[at : at + 3], AT)
            decoder = pickle.loads(pickle.dumps(decoder))  # noqa: S301 - our own bytes
    assert short(messages + decoder.close(AT)) == short(run(docker_conversation(), DockerDecoder()))


def test_truncated_anywhere_keeps_what_was_asked_before() -> None:
    turns = docker_conversation()
    whole = short(run(turns, DockerDecoder()))
    for number, (direction, data) in enumerate(turns):
        for at in range(len(data)):
            found = short(run([*turns[:number], (direction, data[:at])], DockerDecoder()))
            assert [one[0] for one in found] == [one[0] for one in whole[: len(found)]]
            assert all(one[2] in (None, known[2]) for one, known in zip(found, whole, strict=False))


@pytest.mark.parametrize("direction", [OUT, IN])
@pytest.mark.parametrize("length", [1, 9, 100])
def test_after_lost_bytes_no_request_has_the_answer_of_another(direction: Direction, length: int) -> None:
    turns = docker_conversation()[:-3]
    right = {(operation, status) for operation, _, status in short(run(turns, DockerDecoder()))}
    for number, (d, data) in enumerate(turns):
        for start in range(len(data) if d is direction else 0):
            lost = min(length, len(data) - start)
            decoder = DockerDecoder()
            found: list[Message] = []
            for way, before in [*turns[:number], (d, data[:start])]:
                found += decoder.feed(way, before, AT)
            found += decoder.gap(d, lost, AT)
            for way, after in [(d, data[start + lost :]), *turns[number + 1 :]]:
                found += decoder.feed(way, after, AT)
            found += decoder.close(AT)
            told = short(found)
            assert all((one[0], one[2]) in right for one in told if one[2] is not None)
            if direction is IN:
                assert [one[:2] for one in told][-1] == ("exec", (b"date",))
            else:
                assert len(told) == len(right) or "truncated" in str(found) or isinstance(found[-1], Opaque)


def test_answers_come_in_the_order_of_the_requests() -> None:
    asked = http("POST", "/containers/a/stop") + http("DELETE", "/containers/b") + http("PUT", "/x", b"y")
    found = short(decode((OUT, asked), (IN, answer(204, None)), (IN, answer(200, b"x") + answer(500, b"y" * 99))))
    assert found == [
        ("POST /containers/{id}/stop", None, 204),
        ("DELETE /containers/{id}", None, 200),
        ("PUT /x", None, 500),
    ]


@pytest.mark.parametrize(
    ("target", "body", "operation", "command"),
    [
        ("/%63ontainers/create", {"Cmd": ["a"]}, "create", (b"a",)),
        ("//containers/create", {"cMD": ["a"], "CMD": ["b"]}, "create", (b"b",)),
        ("/v4.0.0/libpod/containers/create", {"command": ["a"], "entrypoint": ["e"]}, "create", (b"e", b"a")),
        ("http://d/v1.40/containers/x/exec", {"Cmd": ["\ud800", "\u00e4"]}, "exec", (b"\\ud800", "ä".encode())),
        ("/containers/x/exec", [1], "exec", None),
        ("/containers/x/exec", b"{", "exec", None),
        ("/containers/x/exec", b"[" * 100_000, "exec", None),
        ("/containers/x/exec", {"Cmd": [1, None]}, "exec", None),
        ("/containers/x/restart", None, "start", None),
        ("/images/create?fromImage=alpine", None, "POST /images/create", None),
    ],
)
def test_requests_are_read_as_the_daemon_reads_them(
    target: str, body: object, operation: str, command: tuple[bytes, ...] | None
) -> None:
    (found,) = delegated(decode((OUT, http("POST", target, body))))
    assert (found.operation, found.command) == (operation, command)
    assert found.channel == ("podman" if "libpod" in target else "docker")


def test_lines_may_end_with_lf_alone_and_headers_may_be_folded() -> None:
    body = b'{"Cmd": ["a"]}'
    asked = b"POST /containers/create HTTP/1.1\nContent-Length:\n %d\n\n" % len(body) + body
    assert short(decode((OUT, b"\r\n" + asked * 2))) == [("create", (b"a",), None)] * 2


def test_a_long_body_is_kept_in_part_and_says_so() -> None:
    long = {"Cmd": ["x" * MAX_BODY_BYTES]}
    for chunks in (0, 70_000):
        first, second = delegated(decode((OUT, http("POST", CREATE, long, chunks=chunks) + http("POST", "/x"))))
        assert (first.operation, first.command, first.detail["truncated"]) == ("create", None, True)
        assert second.operation == "POST /x"


def test_a_hole_of_known_length_within_a_body_loses_that_body_only() -> None:
    asked = http("POST", CREATE, {"Cmd": ["x" * 500]})
    decoder = DockerDecoder()
    found = decoder.feed(OUT, asked[:-300], AT) + decoder.gap(OUT, 100, AT)
    found += decoder.feed(OUT, asked[-200:] + http("POST", "/x"), AT) + decoder.close(AT)
    assert short(found) == [("create", None, None), ("POST /x", None, None)]
    assert delegated(found)[0].detail["truncated"] is True


def test_what_is_behind_a_handover_is_not_read_and_a_refused_one_is_none() -> None:
    upgrade = http("POST", "/containers/a/attach", None, "Upgrade: tcp", "Connection: Upgrade")
    behind = http("POST", "/containers/b/start")
    refused = decode((OUT, upgrade + behind), (IN, answer(409)))
    assert short(refused) == [("POST /containers/{id}/attach", None, 409), ("start", None, None)]
    taken = decode((OUT, upgrade + behind), (IN, answer(101, None)))
    assert short(taken) == [("POST /containers/{id}/attach", None, 101)]
    assert taken[-1] == Opaque("upgraded", AT, (len(behind), 0))
    raw = decode((OUT, upgrade), (IN, answer(200, None, "Content-Type: application/vnd.docker.raw-stream")))
    assert isinstance(raw[-1], Opaque)
    held = decode((OUT, upgrade + b"x" * (MAX_HELD_BYTES + 1)))
    assert isinstance(held[-1], Opaque)


def test_more_paths_than_the_limit_are_declared_once_and_changes_go_on() -> None:
    asked = [(OUT, http("GET", f"/x{number}")) for number in range(MAX_PATHS + 9)]
    found = decode(*asked, (OUT, http("POST", CREATE, {"Cmd": ["a"]})))
    assert [type(m) for m in found].count(Omitted) == 1
    assert len(found) == MAX_PATHS + 2
    assert ("create", (b"a",), None) in short(found)


@pytest.mark.parametrize(
    "data",
    [
        b"POST /x HTTP/2.0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /x HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /x HTTP/1.1\r\nLong: " + b"x" * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_what_is_no_request_is_opaque(data: bytes) -> None:
    found = decode((OUT, data + b"more"))
    assert [m.reason for m in found if isinstance(m, Opaque)] == ["not-understood"]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_any_bytes_never_raise_and_do_not_depend_on_pieces(data: st.DataObject, joined: bool) -> None:  # noqa: FBT001
    turns = docker_conversation()
    pieces: list[Turn] = turns[: data.draw(st.integers(0, len(turns)))]
    raw = bytearray(http("POST", CREATE, {"Cmd": ["a", "b"]}, chunks=data.draw(st.integers(0, 9))))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    noise = st.lists(st.tuples(st.sampled_from([OUT, IN]), st.binary(min_size=1, max_size=60)), max_size=3)
    pieces = [*pieces, (OUT, bytes(raw)), *data.draw(noise), *turns[4:8]]
    whole = run(pieces, DockerDecoder(joined=joined))
    single = [(d, x[i : i + 1]) for d, x in pieces for i in range(len(x))]
    again = run(single, DockerDecoder(joined=joined))
    assert [m for m in again if not isinstance(m, Opaque)] == [m for m in whole if not isinstance(m, Opaque)]
    assert len(again) == len(whole)
