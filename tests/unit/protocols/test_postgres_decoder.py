"""What becomes of each kind of exchange; the texts of real servers are in tests/golden."""

from __future__ import annotations

import hashlib
import pickle
import tracemalloc

import pytest

from agentwatch.protocols import postgres_names, postgres_requests
from agentwatch.protocols.base import Message, Opaque, Opened, Outcome, Request, Statement
from agentwatch.protocols.postgres import PostgresDecoder
from tests.unit.protocols.fix_wire import (
    AT,
    BOUND,
    CLOSED,
    COPY_DONE,
    COPY_IN,
    DESCRIPTION,
    EMPTY,
    HELLO,
    IN,
    NO_DATA,
    OUT,
    PARSED,
    ROW,
    SUSPENDED,
    SYNC,
    Turn,
    bind,
    close,
    complete,
    conversation,
    describe,
    error,
    execute,
    message,
    notice,
    packet,
    parse,
    query,
    ready,
    run,
    short,
    simple,
    startup,
    statements,
)

SSL_REQUEST, GSSENC_REQUEST, CANCEL_REQUEST = packet(80877103), packet(80877104), 80877102


def after_hello(*turns: Turn) -> list[Message]:
    return run([*HELLO, *turns])[1:]


def test_the_startup_says_who_and_no_secret_is_kept_or_told() -> None:
    decoder = PostgresDecoder()
    told: list[Message] = []
    for direction, data in HELLO:
        for i in range(len(data)):
            told += decoder.feed(direction, data[i : i + 1], AT)
            assert b"secret" not in pickle.dumps(decoder)
    names: dict[str, str | int | bool] = {"postgresql.protocol_version": "3.0", "postgresql.application_name": "test"}
    assert told == [Opened("bob", "shop", names)]


def test_the_database_is_the_users_when_none_is_named() -> None:
    assert run([(OUT, startup(user="bob"))]) == [Opened("bob", "bob", {"postgresql.protocol_version": "3.0"})]


def test_protocol_3_2_with_long_cancel_keys_and_negotiation() -> None:
    turns = [
        (OUT, startup((3 << 16) + 2, user="bob")),
        (IN, message("v", bytes(8)) + message("R", bytes(4)) + message("K", bytes(4 + 32)) + ready()),
        *simple(5),
    ]
    assert short(run(turns)) == [(b"select 5", "ok", "SELECT 5")]


@pytest.mark.parametrize("refused", [[SSL_REQUEST], [GSSENC_REQUEST], [GSSENC_REQUEST, SSL_REQUEST]])
def test_refused_encryption_goes_on_in_plain(refused: list[bytes]) -> None:
    turns: list[Turn] = [turn for one in refused for turn in ((OUT, one), (IN, b"N"))]
    assert short(run([*turns, *HELLO, *simple(5)])) == [(b"select 5", "ok", "SELECT 5")]


@pytest.mark.parametrize(
    ("asked", "answer", "reason"),
    [
        (SSL_REQUEST, b"S", "tls"),
        (GSSENC_REQUEST, b"G", "gssenc"),
        (SSL_REQUEST, b"G", "not-understood"),
    ],
)
def test_encryption_ends_the_reading(asked: bytes, answer: bytes, reason: str) -> None:
    turns = [(OUT, asked), (IN, answer), (OUT, b"\x16\3\1\0\5hello"), (IN, b"\x16\3\3\0\1x")]
    assert run(turns) == [Opaque(reason, AT)]


def test_tls_without_asking() -> None:
    assert run([(OUT, b"\x16\3\1\2\0\1\0\1\xfc\3\3")]) == [Opaque("tls", AT, (11, 0))]


@pytest.mark.parametrize("first", [packet(2 << 16, bytes(288)), packet(3 << 16, bytes(10_000)), b"GET / HTTP/1.1\r\n"])
def test_what_is_no_protocol_3_is_not_understood(first: bytes) -> None:
    assert run([(OUT, first)]) == [Opaque("not-understood", AT)]


@pytest.mark.parametrize("key", [4, 32, 256])
def test_a_cancel_request_tells_the_process_and_not_the_key(key: int) -> None:
    asked = packet(CANCEL_REQUEST, (4711).to_bytes(4, "big") + b"K" * key)
    assert run([(OUT, asked)]) == [Request("cancel", AT, 0, {"postgresql.backend_pid": 4711})]


def test_one_statement_keeps_the_text_of_its_query_untouched() -> None:
    text = b"\n select 'a;b' ; -- done\n ;; "
    found = statements(after_hello((OUT, query(text)), (IN, DESCRIPTION + ROW + complete(b"SELECT 1") + ready())))
    assert [(s.text, s.rows, s.attributes) for s in found] == [(text, 1, {"postgresql.transaction_status": "I"})]


def test_statements_of_one_query_add_up_to_its_text() -> None:
    text = b"  select 1 ;\nselect ';' /* ; */; ; update t set a = 2 ; -- end"
    answers = ROW + complete(b"SELECT 1") + ROW * 2 + complete(b"SELECT 2") + complete(b"UPDATE 7")
    found = statements(after_hello((OUT, query(text)), (IN, answers + ready(b"T"))))
    assert [(s.text, s.rows) for s in found] == [
        (b"select 1", 1),
        (b"select ';' /* ; */", 2),
        (b"update t set a = 2", 7),
    ]
    whole = str(found[0].attributes["postgresql.query_prefix"])
    for s in found:
        assert text[int(s.attributes["postgresql.query_text_offset"]) :].startswith(s.text or b"-")
        whole += (s.text or b"").decode() + str(s.attributes["postgresql.query_separator"])
    assert whole.encode() == text


def test_statements_behind_an_error_are_discarded() -> None:
    turns = [(OUT, query(b"select 1; fail; select 3")), (IN, complete(b"SELECT 1") + error(b"no") + ready())]
    assert short(after_hello(*turns)) == [
        (b"select 1", "ok", "SELECT 1"),
        (b"fail", "error", "22012"),
        (b"select 3", "discarded", None),
    ]


def test_a_text_with_a_syntax_error_further_on_stays_whole() -> None:
    text = b"select 1; selec 2"
    turns = [(OUT, query(text)), (IN, error(b"syntax error", code=b"42601", P=b"11") + ready())]
    assert short(after_hello(*turns)) == [(text, "error", "42601")]


def test_another_number_of_answers_than_statements_says_nothing_of_parts() -> None:
    text = b"select 1; select 2"
    three = complete(b"SELECT 1") * 3
    found = statements(after_hello((OUT, query(text)), (IN, three + ready())))
    assert [(s.text, s.outcome, s.rows, s.command_tag) for s in found] == [(text, Outcome.OK, None, None)]
    assert found[0].attributes["postgresql.query_count"] == 3


def test_an_empty_query_is_a_statement_of_no_text() -> None:
    assert short(after_hello((OUT, query(b"")), (IN, EMPTY + ready()))) == [(b"", "ok", None)]


def test_notices_settings_and_notifications_may_come_anywhere() -> None:
    noise = notice(b"n") + message("A", bytes(4) + b"c\0p\0") + message("S", b"a\0b\0")
    answer = noise + DESCRIPTION + noise + ROW + noise + complete(b"SELECT 1") + noise + ready() + noise
    turns = [(OUT, query(b"select 1")), (IN, answer), *simple(2)]
    assert short(after_hello(*turns)) == [(b"select 1", "ok", "SELECT 1"), (b"select 2", "ok", "SELECT 2")]


def test_parameters_take_the_types_that_the_server_told() -> None:
    types = message("t", b"\0\2" + (23).to_bytes(4, "big") + (1114).to_bytes(4, "big"))
    values = bind((5).to_bytes(4, "big"), bytes(8), name=b"s", formats=(1,))
    turns = [
        (OUT, parse(b"q", b"s") + describe(b"S", b"s") + SYNC),
        (IN, PARSED + types + NO_DATA + ready()),
        (OUT, values + execute() + SYNC),
        (IN, BOUND + complete(b"UPDATE 1") + ready()),
    ]
    assert [s.params for s in statements(after_hello(*turns))] == [(5, "2000-01-01 00:00:00")]


def test_a_name_means_what_it_meant_to_the_server() -> None:
    asked = parse(b"select 1", b"s") + SYNC + parse(b"select 2", b"s") + SYNC + bind(name=b"s") + execute() + SYNC
    exists = error(b"exists", code=b"42P05")
    answer = PARSED + ready() + exists + ready() + BOUND + ROW + complete(b"SELECT 1") + ready()
    found = short(after_hello((OUT, asked), (IN, answer)))
    assert found == [(b"select 2", "error", "42P05"), (b"select 1", "ok", "SELECT 1")]


def test_a_closed_name_means_nothing() -> None:
    turns = [
        (OUT, parse(b"select 1", b"s") + close(b"S", b"s") + bind(name=b"s") + execute() + SYNC),
        (IN, PARSED + CLOSED + error(b"no such", code=b"26000") + ready()),
    ]
    assert short(after_hello(*turns)) == [(None, "error", "26000")]


@pytest.mark.parametrize("answer", [error(b"e"), PARSED + error(b"e"), PARSED + BOUND + error(b"e")])
def test_a_failed_parse_bind_or_describe_is_one_statement_with_its_execute(answer: bytes) -> None:
    asked = parse(b"select $1") + bind(b"x") + describe() + execute() + SYNC
    assert short(after_hello((OUT, asked), (IN, answer + ready()))) == [(b"select $1", "error", "22012")]


def test_each_further_execution_of_a_failed_parse_is_discarded() -> None:
    asked = parse(b"q", b"s") + bind(b"1", name=b"s") + execute() + bind(b"2", name=b"s") + execute() + SYNC
    found = statements(after_hello((OUT, asked), (IN, error(b"e") + ready())))
    assert [(s.text, s.outcome, s.params) for s in found] == [
        (b"q", Outcome.ERROR, None),
        (b"q", Outcome.DISCARDED, ("2",)),
    ]


def test_what_comes_after_an_error_is_discarded_up_to_sync() -> None:
    later = parse(b"select 2", b"t") + bind(name=b"t") + execute() + query(b"select 3")
    turns = [
        (OUT, parse(b"fail") + bind() + execute()),
        (IN, PARSED + BOUND + error(b"e")),
        (OUT, later),
        (OUT, SYNC + bind(name=b"t") + execute() + SYNC),
        (IN, ready() + error(b"no such", code=b"26000") + ready()),
        *simple(4),
    ]
    assert short(after_hello(*turns)) == [
        (b"fail", "error", "22012"),
        (b"select 2", "discarded", None),
        (b"select 3", "discarded", None),
        (None, "error", "26000"),
        (b"select 4", "ok", "SELECT 4"),
    ]


def test_an_error_at_sync_is_that_of_the_last_statement() -> None:
    asked = parse(b"insert 1") + bind() + execute() + parse(b"insert 2") + bind() + execute() + SYNC
    done = PARSED + BOUND + complete(b"INSERT 0 1")
    answer = done + done + error(b"violates", code=b"23503") + ready()
    assert [(s.text, s.outcome, s.status_code) for s in statements(after_hello((OUT, asked), (IN, answer)))] == [
        (b"insert 1", Outcome.OK, None),
        (b"insert 2", Outcome.ERROR, "23503"),
    ]


def test_executions_of_a_suspended_portal_are_one_statement() -> None:
    turns = [
        (OUT, parse(b"select 9") + bind(portal=b"p") + execute(b"p", 2) + SYNC),
        (IN, PARSED + BOUND + ROW * 2 + SUSPENDED + ready(b"T")),
        (OUT, execute(b"p", 2) + SYNC),
        (IN, ROW * 2 + SUSPENDED + ready(b"T")),
        (OUT, execute(b"p") + SYNC),
        (IN, ROW + complete(b"SELECT 1") + ready(b"T")),
    ]
    found = statements(after_hello(*turns))
    assert [(s.text, s.rows, s.outcome) for s in found] == [(b"select 9", 5, Outcome.OK)]


def test_an_abandoned_portal_is_told_when_its_transaction_ends() -> None:
    turns = [
        (OUT, parse(b"select 9") + bind() + execute(b"", 2) + SYNC),
        (IN, PARSED + BOUND + ROW * 2 + SUSPENDED + ready(b"I")),
    ]
    decoder = PostgresDecoder()
    found = statements([m for d, data in HELLO + turns for m in decoder.feed(d, data, AT)])
    assert [(s.rows, s.attributes["postgresql.suspended"]) for s in found] == [(2, True)]


def test_a_sync_within_copied_data_is_never_answered() -> None:
    turns = [
        (OUT, parse(b"copy t from stdin") + bind() + execute() + SYNC),
        (IN, PARSED + BOUND + COPY_IN),
        (OUT, message("d", b"1\n2\n") + SYNC + message("d", b"3\n") + COPY_DONE + SYNC),
        (IN, complete(b"COPY 3") + ready()),
        *simple(4),
    ]
    found = statements(after_hello(*turns))
    copy = {"postgresql.copy": "in", "postgresql.copy_bytes": 6, "postgresql.copy_rows": 3}
    assert copy.items() <= found[0].attributes.items()
    assert short(list(found))[1] == (b"select 4", "ok", "SELECT 4")


@pytest.mark.parametrize("answered", [1, 2, 3])
def test_syncs_around_a_failed_copy_may_or_may_not_be_answered(answered: int) -> None:
    turns = [
        (OUT, parse(b"copy t from stdin") + bind() + execute() + SYNC + SYNC),
        (IN, PARSED + BOUND + COPY_IN),
        (OUT, message("d", b"wrong\n") + COPY_DONE + SYNC + query(b"select 4")),
        (IN, error(b"wrong", code=b"22P02") + ready() * answered + complete(b"SELECT 4") + ready()),
        *simple(5),
    ]
    assert short(after_hello(*turns)) == [
        (b"copy t from stdin", "error", "22P02"),
        (b"select 4", "ok", "SELECT 4"),
        (b"select 5", "ok", "SELECT 5"),
    ]


def test_a_copy_given_up_by_the_client() -> None:
    turns = [
        (OUT, query(b"copy t from stdin")),
        (IN, COPY_IN),
        (OUT, message("d", b"1\n") + message("f", b"no\0")),
        (IN, error(b"COPY from stdin failed: no", code=b"57014") + ready()),
        *simple(4),
    ]
    found = statements(after_hello(*turns))
    assert (found[0].outcome, found[0].attributes["postgresql.copy_bytes"]) == (Outcome.ERROR, 2)
    assert found[1].command_tag == "SELECT 4"


def test_a_fatal_error_ends_everything_that_waits() -> None:
    turns = [
        (OUT, query(b"select 1") + query(b"select 2")),
        (IN, error(b"terminating", code=b"57P01", severity=b"FATAL")),
        (OUT, query(b"select 3")),
    ]
    assert short(after_hello(*turns)) == [
        (b"select 1", "error", "57P01"),
        (b"select 2", "discarded", None),
        (b"select 3", "discarded", None),
    ]


def test_a_function_call_is_a_request() -> None:
    call = message("F", bytes(10))
    turns = [(OUT, call), (IN, message("V", b"\xff\xff\xff\xff") + ready()), *simple(4)]
    found = after_hello(*turns)
    assert isinstance(found[0], Request)
    assert short(found) == [(b"select 4", "ok", "SELECT 4")]


def test_a_closed_connection_leaves_an_unknown_outcome() -> None:
    assert short(after_hello((OUT, query(b"select 1")), (IN, DESCRIPTION + ROW))) == [(b"select 1", "unknown", None)]


def test_of_a_message_whose_end_was_not_seen_the_statement_is_told() -> None:
    whole = query(b"select 1")
    for length in range(5, len(whole)):
        (said,) = statements(after_hello((OUT, whole[:length])))
        assert said.text == whole[5:length]
        assert said.text_length == len(whole) - 6 > len(said.text) or length == len(whole) - 1
        assert said.outcome is Outcome.UNKNOWN


def test_an_execution_whose_end_was_not_seen_is_unread() -> None:
    asked = parse(b"select 1") + bind()
    *_, last = after_hello((OUT, asked + execute()[:-2]))
    assert last == Opaque("not-understood", AT, (len(execute()) - 2, 0))
    assert [type(message) for message in after_hello((OUT, asked + execute()))] == [Statement]


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    text = b"select '\xff\xfe' -- \x80"
    assert short(after_hello((OUT, query(text)), (IN, complete(b"SELECT 1") + ready())))[0][0] == text


@pytest.mark.parametrize("prepared", [False, True], ids=["query", "parse"])
def test_a_text_of_sixteen_mebibytes_is_kept_and_a_longer_one_cut(*, prepared: bool) -> None:
    for length, cut in ((16 * 1024 * 1024, False), (16 * 1024 * 1024 + 1, True), (20 * 1024 * 1024, True)):
        text = (b"select %d " % length).ljust(length - 3, b"x") + b"end"
        asked = (
            parse(text, b"s", (23, 25)) + bind(b"1", b"2", name=b"s") + execute() + SYNC if prepared else query(text)
        )
        answer = (PARSED + BOUND if prepared else b"") + complete(b"SELECT 1") + ready()
        pieces: list[Turn] = [(OUT, asked[i : i + 1_000_003]) for i in range(0, len(asked), 1_000_003)]
        (found,) = statements(after_hello(*pieces, (IN, answer)))
        assert (found.text_length, found.outcome) == (length, Outcome.OK)
        assert found.params == ((1, "2") if prepared else None)
        if cut:
            assert found.text == text[:65536] + text[-65536:]
            assert found.text_sha256 == hashlib.sha256(text).digest()
            assert statements(after_hello((OUT, asked), (IN, answer))) == [found]
        else:
            assert found.text == text


def test_rows_and_copied_data_cost_no_memory() -> None:
    decoder = PostgresDecoder()
    for direction, data in [*HELLO, (OUT, query(b"select 1"))]:
        decoder.feed(direction, data, AT)
    long_row = message("D", b"\0\1" + (200_000).to_bytes(4, "big") + bytes(200_000))
    stream = (ROW * 5_000 + long_row) * 10
    tracemalloc.start()
    for i in range(0, len(stream), 50_000):
        decoder.feed(IN, stream[i : i + 50_000], AT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
    (found,) = statements(decoder.feed(IN, complete(b"FETCH") + ready(), AT))
    assert found.rows == 50_010


def test_prepared_statements_beyond_the_limit_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_names, "MAX_PREPARED", 3)
    asked = b"".join(parse(b"select %d" % i, b"s%d" % i) for i in range(5)) + SYNC
    turns = [(OUT, asked), (IN, PARSED * 5 + ready())]
    for i in (0, 4):
        turns += [
            (OUT, bind(name=b"s%d" % i) + execute() + SYNC),
            (IN, BOUND + complete(b"SELECT %d" % i) + ready()),
        ]
    assert short(after_hello(*turns)) == [(None, "ok", "SELECT 0"), (b"select 4", "ok", "SELECT 4")]


def test_too_many_waiting_requests_lose_their_outcomes_and_pairing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_requests, "MAX_PENDING", 5)
    turns = [
        (OUT, b"".join(query(b"select %d" % i) for i in range(8))),
        (IN, b"".join(complete(b"SELECT %d" % i) + ready() for i in range(8))),
        *simple(9),
    ]
    found = short(after_hello(*turns))
    assert [text for text, _, _ in found] == [b"select %d" % i for i in (*range(8), 9)]
    assert {outcome for _, outcome, _ in found[:8]} == {"unknown"}
    assert found[-1] == (b"select 9", "ok", "SELECT 9")


def test_prepared_before_a_gap_is_marked_as_possibly_stale() -> None:
    decoder = PostgresDecoder()
    turns = conversation()
    messages: list[Message] = []
    for direction, data in turns[:10]:
        messages += decoder.feed(direction, data, AT)
    messages += decoder.gap(OUT, 50, AT)
    for direction, data in (*simple(1), *simple(2)):
        messages += decoder.feed(direction, data, AT)
    messages += decoder.feed(OUT, bind(b"v", name=b"s") + execute() + SYNC, AT)
    messages += decoder.feed(IN, BOUND + complete(b"SELECT 13") + ready(), AT)
    last = statements(messages)[-1]
    assert (last.text, last.attributes["postgresql.statement_stale"]) == (b"select 13", True)


def test_a_gap_within_a_query_keeps_its_beginning_and_its_outcome() -> None:
    decoder = PostgresDecoder()
    for direction, data in HELLO:
        decoder.feed(direction, data, AT)
    asked = query(b"select 7 " + b"x" * 1000)
    decoder.feed(OUT, asked[:100], AT)
    decoder.gap(OUT, 300, AT)
    decoder.feed(OUT, asked[400:], AT)
    (found,) = statements(decoder.feed(IN, complete(b"SELECT 7") + ready(), AT))
    assert (found.text, found.text_length, found.text_sha256) == (asked[5:100], 1009, None)
    assert (found.outcome, found.command_tag) == (Outcome.OK, "SELECT 7")


def test_a_connection_joined_at_a_query_is_told_at_once() -> None:
    decoder = PostgresDecoder(joined=True)
    (first,) = statements(decoder.feed(OUT, query(b"select 1"), AT))
    assert (first.text, first.outcome, first.joined) == (b"select 1", Outcome.UNKNOWN, True)
    decoder.feed(IN, complete(b"SELECT 1") + ready(), AT)
    decoder.feed(OUT, query(b"select 2"), AT)
    (second,) = statements(decoder.feed(IN, complete(b"SELECT 2") + ready(), AT))
    assert (second.text, second.outcome, second.joined) == (b"select 2", Outcome.OK, True)


def test_a_client_that_pipelines_after_a_gap_is_not_paired_by_its_turn() -> None:
    decoder = PostgresDecoder()
    for direction, data in HELLO:
        decoder.feed(direction, data, AT)
    found: list[Message] = []
    found += decoder.feed(OUT, query(b"select 1") + query(b"select 2") + query(b"select 3"), AT)
    found += decoder.gap(IN, len(complete(b"SELECT 1") + ready()), AT)
    found += decoder.feed(IN, complete(b"SELECT 2") + ready(), AT)
    found += decoder.feed(OUT, query(b"select 4"), AT)
    found += decoder.feed(IN, complete(b"SELECT 3") + ready() + complete(b"SELECT 4") + ready(), AT)
    assert {outcome for _, outcome, _ in short(found)} == {"unknown"}
