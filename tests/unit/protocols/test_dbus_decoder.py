"""What D-Bus calls have others do, and the rules of ``protocols.base`` at every split, cut, gap and save."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.protocols.base import Direction, Message, Omitted, Opaque
from agentwatch.protocols.dbus import MAX_AUTH_BYTES, MAX_CALLS, DbusDecoder
from agentwatch.protocols.dbus_frames import MAX_BODY_BYTES, MAX_HEADER_BYTES
from tests.unit.protocols.fix_delegation import (
    AT,
    AUTH,
    IN,
    OUT,
    Marshal,
    Turn,
    bus_conversation,
    call,
    delegated,
    exec_property,
    names,
    run,
    text_property,
    transient,
)

both_orders = pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
ECHO = (b"/bin/echo", b"hello", b"two words")
TRANSIENT = [ECHO, (b"/bin/true",), None, (b"/bin/date",)]


def decode(*messages: bytes) -> list[Message]:
    return run([(OUT, AUTH + b"".join(messages))], DbusDecoder())


@both_orders
def test_a_conversation_tells_each_command_and_each_other_call_once(order: str) -> None:
    found = delegated(run(bus_conversation(order), DbusDecoder()))
    assert [m.operation for m in found] == ["call", *["StartTransientUnit"] * 4, "StartUnit"]
    assert [m.command for m in found] == [None, *TRANSIENT, None]
    assert found[0].detail["member"] == "Hello"
    assert found[1].detail == {
        "destination": "org.freedesktop.systemd1",
        "interface": "org.freedesktop.systemd1.Manager",
        "path": "/org/freedesktop/systemd1",
        "unit": "run-1.service",
        "user": "bob",
        "environment": ["TOKEN", "A"],
        "property": "ExecStart",
    }
    assert [m.detail.get("unit") for m in found[3:5]] == ["run-2.timer", "run-2.service"]
    assert found[5].detail["units"] == ["cron.service"]
    assert b"secret" not in pickle.dumps(found)


@both_orders
def test_every_split_point_and_byte_by_byte_are_the_same(order: str) -> None:
    turns = bus_conversation(order)
    whole = run(turns, DbusDecoder())
    for number, (direction, data) in enumerate(turns):
        for at in range(1, len(data)):
            pieces = [*turns[:number], (direction, data[:at]), (direction, data[at:]), *turns[number + 1 :]]
            assert run(pieces, DbusDecoder()) == whole
    assert run([(d, data[i : i + 1]) for d, data in turns for i in range(len(data))], DbusDecoder()) == whole


def test_saved_and_loaded_at_every_piece_is_the_same() -> None:
    decoder = DbusDecoder()
    messages: list[Message] = []
    for direction, data in bus_conversation():
        for at in range(0, len(data), 3):
            messages += decoder.feed(direction, data[at : at + 3], AT)
            decoder = pickle.loads(pickle.dumps(decoder))  # noqa: S301 - our own bytes
    assert messages + decoder.close(AT) == run(bus_conversation(), DbusDecoder())


@both_orders
def test_truncated_anywhere_tells_no_command_that_was_not_sent(order: str) -> None:
    turns = bus_conversation(order)
    whole = delegated(run(turns, DbusDecoder()))
    for number, (direction, data) in enumerate(turns):
        for at in range(len(data)):
            found = delegated(run([*turns[:number], (direction, data[:at])], DbusDecoder()))
            known = [m for m in found if "truncated" not in m.detail]
            assert known == whole[: len(known)]
            assert {m.command for m in found} <= {None, *TRANSIENT}


@both_orders
@pytest.mark.parametrize("length", [1, 5, 8, 37, 400])
@pytest.mark.parametrize("told", [True, False], ids=["length known", "length unknown"])
def test_a_gap_anywhere_leaves_what_comes_after_it_readable(order: str, length: int, *, told: bool) -> None:
    data = b"".join(data for direction, data in bus_conversation(order) if direction is OUT)
    last = delegated(run([(OUT, data)], DbusDecoder()))[-1]
    after = data.rindex(b"l\1\0\1" if order == "<" else b"B\1\0\1")
    for start in range(after - length):
        decoder = DbusDecoder()
        found = decoder.feed(OUT, data[:start], AT)
        found += decoder.gap(OUT, length if told else 0, AT)
        found += decoder.feed(OUT, data[start + length :], AT)
        again = delegated(found + decoder.close(AT))[-1]
        assert again.operation == "StartUnit", start
        assert {key: value for key, value in again.detail.items() if key != "joined"} == last.detail
        if told:
            assert again.offset == last.offset


def test_bytes_of_the_bus_do_not_matter() -> None:
    turns = bus_conversation()
    decoder = DbusDecoder()
    messages: list[Message] = decoder.gap(IN, 5, AT)
    for direction, data in turns:
        messages += decoder.feed(direction, data if direction is OUT else b"\xff" * 9, AT)
    assert messages + decoder.close(AT) == run(turns, DbusDecoder())


def test_joined_anywhere_gives_marked_calls() -> None:
    data = b"".join(data for direction, data in bus_conversation() if direction is OUT)[len(AUTH) :]
    for start in range(1, data.rindex(b"l\1\0\1")):
        found = delegated(run([(OUT, data[start:])], DbusDecoder(joined=True)))
        assert found[-1].operation == "StartUnit"
        assert all(m.detail["joined"] for m in found)


@pytest.mark.parametrize("interface", [None, "org.freedesktop.systemd1.Manager"])
def test_a_command_needs_neither_interface_nor_the_services_name(interface: str | None) -> None:
    body = Marshal().s("x.service").s("fail").array(8, exec_property("ExecStart", ("/bin/id",))).array(8).data
    (found,) = delegated(
        decode(call("StartTransientUnit", "ssa(sv)a(sa(sv))", body, interface=interface, destination=":1.3"))
    )
    assert found.command == (b"/bin/id",)
    (other,) = delegated(decode(call("StartUnit", "ss", b"", interface="org.example.Other")))
    assert other.operation == "call"


def test_other_requests_to_run_something() -> None:
    shell = Marshal().s("box").s("root").s("/bin/sh").array(4, lambda m: m.s("sh"), lambda m: m.s("-c")).array(4)
    start_by_name = Marshal().s("org.example.Service").u(0).data
    found = delegated(
        decode(
            call("OpenMachineShell", "sssasas", shell.data, interface="org.freedesktop.machine1.Manager"),
            call("EnableUnitFiles", "asbb", names("a.service", "b.service") + bytes(8)),
            call("StartServiceByName", "su", start_by_name, interface="org.freedesktop.DBus"),
            call("Restart", "s", Marshal().s("fail").data, interface="org.freedesktop.systemd1.Unit", path="/u/x"),
        )
    )
    assert [(m.channel, m.operation, m.command) for m in found] == [
        ("machined", "OpenMachineShell", (b"sh", b"-c")),
        ("dbus", "EnableUnitFiles", None),
        ("dbus", "StartServiceByName", None),
        ("dbus", "Restart", None),
    ]
    assert found[0].detail["machine"] == "box"
    assert found[1].detail["units"] == ["a.service", "b.service"]
    assert found[2].detail["units"] == ["org.example.Service"]
    assert found[3].detail["path"] == "/u/x"


def test_a_program_under_another_name_is_told() -> None:
    def command(m: Marshal) -> None:
        m.struct(lambda v: v.s("/bin/sh"), lambda v: v.array(4, lambda x: x.s("harmless")), lambda v: v.array(4))

    def property_(m: Marshal) -> None:
        m.struct(lambda v: v.s("ExecStartEx"), lambda v: v.variant("a(sasas)", lambda x: x.array(8, command)))

    (found,) = delegated(decode(transient("x.service", property_)))
    assert (found.command, found.detail["program"]) == ((b"harmless",), "/bin/sh")


def test_a_long_body_is_kept_in_part_and_says_so() -> None:
    long = text_property("Description", "x" * MAX_BODY_BYTES)
    first, second = delegated(
        decode(
            transient("x.service", exec_property("ExecStart", ("/bin/a",)), long),
            transient("y.service", long, exec_property("ExecStart", ("/bin/b",))),
        )
    )
    assert (first.command, first.detail["truncated"]) == ((b"/bin/a",), True)
    assert (second.command, second.detail["truncated"]) == (None, True)


def test_a_header_too_long_to_read_is_told_and_what_follows_is_read() -> None:
    found = delegated(decode(call("X", path="/" + "x" * MAX_HEADER_BYTES), call("StartUnit", "s", b"")))
    assert [(m.operation, m.detail.get("truncated")) for m in found] == [("call", True), ("StartUnit", None)]


def test_more_kinds_of_calls_than_the_limit_are_declared_once_and_commands_go_on() -> None:
    calls = [call(f"Call{number}") for number in range(MAX_CALLS + 9)]
    found = decode(*calls, transient("x.service", exec_property("ExecStart", ("/bin/a",))))
    assert [type(m).__name__ for m in found].count("Omitted") == 1
    assert isinstance(found[MAX_CALLS], Omitted)
    assert delegated(found)[-1].command == (b"/bin/a",)
    assert len(found) == MAX_CALLS + 2


@pytest.mark.parametrize("data", [b"\0" * 16, b"l\1\0\2" + bytes(12), b"l\0\0\1" + bytes(12), b"x" * 16])
def test_what_is_no_message_is_opaque(data: bytes) -> None:
    assert decode(data, b"more") == [Opaque("not-understood", AT, (len(data) + 4, 0))]


@pytest.mark.parametrize("line", [b"DATA x\nBEGIN", b"DATA x\nBEGIN y", b"XBEGIN"])
def test_messages_begin_where_the_bus_lets_them_begin(line: bytes) -> None:
    start = transient("x.service", exec_property("ExecStart", ("/bin/a",)))
    found = run([(OUT, b"\0AUTH EXTERNAL 30\r\n" + line + b"\r\nBEGIN\r\n" + start)], DbusDecoder())
    assert [m.command for m in delegated(found)] == [(b"/bin/a",)]


def test_an_end_of_the_authentication_that_not_every_bus_takes_for_one_is_opaque() -> None:
    found = run([(OUT, b"\0AUTH EXTERNAL 30\r\nBEGIN x\r\n" + transient("x.service"))], DbusDecoder())
    assert [type(m) for m in found] == [Opaque]


def test_an_authentication_without_end_is_opaque() -> None:
    found = run([(OUT, b"\0AUTH " + b"x" * MAX_AUTH_BYTES)], DbusDecoder())
    assert [type(m) for m in found] == [Opaque]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_any_bytes_never_raise_and_do_not_depend_on_pieces(data: st.DataObject, joined: bool) -> None:  # noqa: FBT001
    turns = bus_conversation(data.draw(st.sampled_from("<>")))
    pieces: list[Turn] = turns[: data.draw(st.integers(0, len(turns)))]
    raw = bytearray(transient("x.service", exec_property("ExecStart", ("/bin/a", "b"))))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    noise = st.lists(st.tuples(st.sampled_from([OUT, IN]), st.binary(min_size=1, max_size=60)), max_size=3)
    pieces = [*pieces, (Direction.OUT, bytes(raw)), *data.draw(noise), *turns[-1:]]
    whole = run(pieces, DbusDecoder(joined=joined))
    single = [(d, x[i : i + 1]) for d, x in pieces for i in range(len(x))]
    again = run(single, DbusDecoder(joined=joined))
    assert [m for m in again if not isinstance(m, Opaque)] == [m for m in whole if not isinstance(m, Opaque)]
    assert len(again) == len(whole)
