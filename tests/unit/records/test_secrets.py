"""Credentials in records: what is found and what is left (the corpus), how it is told, hostile texts, cost."""

from __future__ import annotations

import copy
import hmac
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.public import PrivateKey, SealedBox

from agentwatch.records.encoding import decode, encode
from agentwatch.records.secret_patterns import MAX_VALUE_BYTES
from agentwatch.records.secrets import MAX_LISTED
from tests.unit.modules import FUZZ, load
from tests.unit.records.fix_secrets import HASH_KEY, MARKER, Example, corpus, record_with, redactor, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentwatch.records.encoding import Record

EXAMPLES = corpus()


def statement(text: str | bytes, params: list[object] | None = None, system: str = "postgresql") -> Record:
    return {"kind": "statement", "db.system.name": system, "db.query.text": text, "params": params}


def digest(value: bytes) -> str:
    return hmac.digest(HASH_KEY, value, "sha256").hex()[:16]


def marker(value: bytes) -> str:
    return f"[secret {len(value)} bytes hmac {digest(value)}]"


# --- the corpus -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.group}-{e.wanted}-{e.expected}"[:90])
def test_credential_of_the_corpus(example: Example) -> None:
    before = copy.deepcopy(example.record)
    result = redactor().apply(example.record)
    assert example.record == before, "the record that came in was changed"
    assert (told(result[example.field]) == example.expected) == (example.wanted != "missed")
    assert (result is example.record) == ("secrets" not in result)
    if example.wanted == "kept":
        assert result is example.record


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.wanted == "found"], ids=lambda e: str(e.expected)[:90])
def test_what_was_replaced_is_not_replaced_again(example: Example) -> None:
    once = redactor().apply(example.record)
    assert redactor().apply(once) is once
    unmarked = {key: value for key, value in once.items() if key != "secrets"}
    assert redactor().apply(unmarked) == unmarked


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.wanted == "found"], ids=lambda e: str(e.expected)[:90])
def test_bytes_that_are_not_utf_8_are_read_as_text_is(example: Example) -> None:
    def raw(value: object) -> object:
        if isinstance(value, list):
            return [raw(word) for word in value]
        return value.encode() + b" \xff" if isinstance(value, str) else value

    expected = redactor().apply(example.record)
    if example.group == "argv" or "unterminated" in str(example.record):
        return  # what was put at the end would be a part of the credential
    record = {**example.record, example.field: raw(example.record[example.field])}
    result = redactor().apply(record)
    assert result[example.field] == raw(expected[example.field])
    assert decode(encode(result)) == result


def test_the_corpus_is_large_enough_to_mean_something() -> None:
    count = {wanted: sum(e.wanted == wanted for e in EXAMPLES) for wanted in ("found", "kept", "missed", "spoiled")}
    assert count["found"] + count["missed"] >= 120
    assert count["kept"] + count["spoiled"] >= 120
    assert count["missed"] < count["found"] / 10
    assert count["spoiled"] < count["found"] / 20


# --- how it is told -------------------------------------------------------------------------------------------------


def test_equal_secrets_are_equal_wherever_and_however_they_are_spelled() -> None:
    r = redactor()
    records = [
        statement("ALTER ROLE a PASSWORD 'it''s'"),
        statement("ALTER ROLE a PASSWORD E'it\\'s'"),
        statement("ALTER ROLE a PASSWORD $$it's$$"),
        statement("ALTER ROLE a PASSWORD U&'it\\0027s'"),
        statement("SELECT 1 FROM t WHERE password = $1", ["it's"]),
        statement("SET PASSWORD = 'it\\'s'", system="mysql"),
        {"kind": "exec", "argv": ["psql", "postgresql://u:it%27s@h/d"]},
        {"kind": "exec", "argv": ["mysql", "-pit's"]},
        {"kind": "command_input", "text": 'PGPASSWORD="it\'s" psql'},
    ]
    told_of = [r.apply(record)["secrets"] for record in records]
    assert [(len(t), t[0]["bytes"], t[0]["hmac"]) for t in told_of] == [(1, 4, digest(b"it's"))] * len(records)


def test_marker_stands_within_the_quotes_and_secrets_tell_field_length_and_hash_in_order() -> None:
    record = statement("ALTER ROLE a PASSWORD 'pä'; ALTER ROLE b PASSWORD 'q'", ["x"])
    result = redactor().apply(record)
    first, second = "pä".encode(), b"q"
    assert result == {
        **record,
        "db.query.text": f"ALTER ROLE a PASSWORD '{marker(first)}'; ALTER ROLE b PASSWORD '{marker(second)}'",
        "secrets": [
            {"field": "db.query.text", "bytes": 3, "hmac": digest(first)},
            {"field": "db.query.text", "bytes": 1, "hmac": digest(second)},
        ],
    }


def test_another_key_gives_another_hash() -> None:
    record = statement("ALTER ROLE a PASSWORD 'x'")
    from agentwatch.config_tables import SecretsConfig  # noqa: PLC0415 -- only here
    from agentwatch.records.secrets import Redactor  # noqa: PLC0415 -- as above

    other = Redactor(SecretsConfig(), b"another").apply(record)
    assert other["secrets"][0]["hmac"] != redactor().apply(record)["secrets"][0]["hmac"]


def test_lengths_that_are_recorded_stay_those_of_the_original() -> None:
    argv = ["mysql", "-phunter2"]
    result = redactor().apply({"kind": "exec", "argv": argv, "argv_bytes": 17, "argv_captured": 17})
    assert (result["argv_bytes"], result["argv_captured"]) == (17, 17)
    assert result["argv"] == ["mysql", f"-p{marker(b'hunter2')}"]
    assert result["secrets"][0]["field"] == "argv[1]"


@pytest.mark.parametrize(
    ("text", "params", "system", "hidden"),
    [
        ("SELECT 1 FROM users WHERE name = $1 AND password = $2", ["bob", "x"], "postgresql", {1}),
        ("UPDATE users SET password = $1 WHERE id = $2", ["x", 3], "postgresql", {0}),
        ("UPDATE users SET password=crypt($2, gen_salt('bf')) WHERE id = $1", [3, "x"], "postgresql", {1}),
        ("SELECT crypt($1, h) FROM users", ["x"], "postgresql", {0}),
        ("SELECT set_config('app.api_key', $1, false)", ["x"], "postgresql", {0}),
        ("SELECT set_config($1, $2, false)", ["search_path", "public"], "postgresql", set()),
        ("INSERT INTO users (name, password) VALUES ($1, $2), ($3, $4)", ["a", "x", "b", "y"], "postgresql", {1, 3}),
        ("SELECT * FROM users WHERE password IN ($1, $2) AND id = $3", ["x", "y", 1], "postgresql", {0, 1}),
        ("SELECT * FROM users WHERE name = $1", ["password"], "postgresql", set()),
        ("SELECT pgp_sym_encrypt(a, $1) FROM t", ["x"], "postgresql", {0}),
        ("SET PASSWORD = ?", ["x"], "mysql", {0}),
        ("UPDATE u SET name = ?, password = ?, a = '?' WHERE id = ?", ["a", "x", 1], "mysql", {1}),
        ("INSERT INTO users (name, password) VALUES (?, ?), (?, ?)", ["a", "x", "b", "y"], "mysql", {1, 3}),
        ("SELECT password FROM users WHERE id = $1", ["x"], "postgresql", set()),
        ("SELECT 1 FROM users WHERE pin = $1 AND password = $2", [1, 1234], "postgresql", {1}),
        ("SELECT 1 FROM users WHERE password = $1", [None], "postgresql", set()),
        ("INSERT INTO config VALUES ($1)", ["postgresql://u:hunter2@h/d"], "postgresql", {0}),
        ("INSERT INTO config VALUES ($1)", [b"\xff ghp_abcdefghijklmnopqrstuvwxyz0123456789"], "postgresql", {0}),
    ],
)
def test_parameter_is_hidden_where_the_statement_says_what_it_is(
    text: str, params: list[object], system: str, hidden: set[int]
) -> None:
    result = redactor().apply(statement(text, params, system))
    assert {i for i, (a, b) in enumerate(zip(params, result["params"], strict=True)) if a != b} == hidden
    assert {entry["field"] for entry in result.get("secrets", [])} == {f"params[{i}]" for i in hidden}
    assert result["db.query.text"] == text


def test_delegation_is_looked_through_to_its_leaves() -> None:
    record: Record = {
        "kind": "delegation",
        "command": ["psql", "postgresql://u:hunter2@h/d"],
        "operation": "POST /images/create?password=hunter2&tag=1",
        "detail": {
            "image": "postgres",
            "environment": ["PASSWORD"],
            "more": [{"password": "hunter2", "unit": "a.service"}],
        },
    }
    result = redactor().apply(record)
    mark = marker(b"hunter2")
    assert result["command"] == ["psql", f"postgresql://u:{mark}@h/d"]
    assert result["operation"] == f"POST /images/create?password={mark}&tag=1"
    assert result["detail"]["more"] == [{"password": mark, "unit": "a.service"}]
    assert [entry["field"] for entry in result["secrets"]] == ["command[1]", "operation", "detail.more[0].password"]


@pytest.mark.parametrize("comm", ["psql", "mysql"])
def test_line_that_a_client_of_a_database_reads_is_a_statement(comm: str) -> None:
    text = "SELECT 1 /* password = '*/; DROP TABLE users; --'"
    record: Record = {"kind": "command_input", "comm": comm, "text": text}
    assert redactor().apply(record) is record
    result = redactor().apply({**record, "text": "ALTER USER a PASSWORD = 'x'"})
    assert result["text"] == f"ALTER USER a PASSWORD = '{marker(b'x')}'"


def test_kinds_of_the_log_itself_are_left_alone() -> None:
    record: Record = {"kind": "epoch", "certificate": "password = 'x' ghp_abcdefghijklmnopqrstuvwxyz0123456789"}
    assert redactor().apply(record) is record


def test_keep_keeps() -> None:
    record = statement("ALTER ROLE a PASSWORD 'x'")
    assert redactor("keep").apply(record) is record


def test_seal_is_opened_with_the_auditors_key_only() -> None:
    key = PrivateKey.generate()
    result = redactor("seal", bytes(key.public_key)).apply(statement("ALTER ROLE a PASSWORD 'it''s'"))
    (entry,) = result["secrets"]
    assert SealedBox(key).decrypt(entry["sealed"]) == b"it's"
    assert b"it's" not in encode(result)
    assert b"it''s" not in encode(result)
    assert entry["hmac"] == digest(b"it's")
    with pytest.raises(Exception, match="decrypt"):
        SealedBox(PrivateKey.generate()).decrypt(entry["sealed"])


def test_a_load_of_secrets_is_replaced_whole_and_told_up_to_a_limit() -> None:
    rows = ", ".join(f"('u{i}', 'p{i}')" for i in range(MAX_LISTED + 10))
    result = redactor().apply(statement(f"INSERT INTO users (name, password) VALUES {rows}"))  # noqa: S608 -- nobody runs it
    assert len(MARKER.findall(result["db.query.text"])) == MAX_LISTED + 10
    assert len(result["secrets"]) == MAX_LISTED + 1
    assert result["secrets"][-1] == {"omitted": 10}


# --- it is no place to hide in --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 /* password = '*/; DROP TABLE users; --'",
        "SELECT 1 -- password = '\n; DROP TABLE users; --'",
        "SELECT 1 /* /* */ password = ' */; DROP TABLE users; --'",
        "SELECT $a$ password = '$a$; DROP TABLE users; --'",
        "SELECT $A$ password = $a$ $A$; DROP TABLE users; --'",
        "SELECT 'x\\', password = '; DROP TABLE users; --'",
        "SELECT \"password = '\"; DROP TABLE users; --'",
        "SELECT 1 AS a$password$ ; DROP TABLE users; --$password$",
        "DO $$ BEGIN PERFORM 1; /* password = '*/ DROP TABLE users; --'\nEND $$",
        'SELECT 1 AS "-----BEGIN PRIVATE KEY-----"; DROP TABLE users --\n-----END PRIVATE KEY-----',
        "SELECT '" + "x" * 20 + "://a:'; DROP TABLE users; --@h'",
        "SELECT password = " + f"'{'DROP TABLE users;' * MAX_VALUE_BYTES}'",
    ],
)
def test_command_that_only_looks_quoted_stays_readable(text: str) -> None:
    assert "DROP TABLE users" in redactor().apply(statement(text))["db.query.text"]


def test_literal_that_a_setting_of_the_server_ends_elsewhere_hides_words_only() -> None:
    text = "SELECT 'x\\', password = '; DROP TABLE users; --'"
    for system in ("postgresql", "mysql"):
        assert redactor().apply(statement(text, system=system))["db.query.text"] == text
    result = redactor().apply(statement("UPDATE a SET dir = 'C:\\', password = 'hunter2'"))
    assert result["db.query.text"].endswith(f"password = '{marker(b'hunter2')}'")


def test_comment_of_mysql_that_its_server_executes_is_read_as_code() -> None:
    text = "/*! SELECT 1 */ -- password = '\n; DROP TABLE users; # '"
    assert redactor().apply(statement(text, system="mysql"))["db.query.text"] == text


# --- hostile and large ----------------------------------------------------------------------------------------------

UNITS = [
    "password='", "password $a$", "'", "''", "\\'", "e'\\'", "/*", "/*password*/", "(password", "://a:",
    "eyJaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "sk-sk-a1", "$1$", "$$", "insert into t(password) values ('a'),",
    "into a (password,", "pgp_sym_encrypt('", "identified by ", "bearer a1", "authorization: ", "cookie: ",
    "password: ", 'token: "', "mysql -p", 'password\\":', "password ", "password=a&", "-a ", "password::a ",
    "'password'=", "password--\n", "password/*x*/", "`", '"', "set_config('token',", "password in ('a',", "A.a_token",
    "(((", "x=password[", "password = $", "[secret 1 bytes hmac ",
]  # fmt: skip


def cost(record: Record) -> float:
    """Return the least processor time of some attempts."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        redactor().apply(record)
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("group", ["postgresql", "mysql", "shell", "argv"])
@pytest.mark.parametrize("unit", UNITS)
def test_cost_is_linear_in_the_text(group: str, unit: str) -> None:
    def of(length: int) -> float:
        text = "password " + unit * (length // len(unit))
        return cost(record_with(group, ["mysql", text] if group == "argv" else text)[0])

    # Eight times the text: what is linear takes 8 times, what is quadratic 64; noise lies between.
    assert of(32_000) < 28 * max(of(4_000), 0.0005)


@pytest.mark.parametrize("word", ["docker", "-p", "mysql", "set", "--password", "password=", "-e", "env", "'", "a b"])
def test_many_words_take_linear_time(word: str) -> None:
    def of(number: int) -> float:
        return cost({"kind": "exec", "argv": ["docker", *[word] * number]})

    assert of(8_000) < 28 * max(of(1_000), 0.0005)


@pytest.mark.slow
def test_what_was_not_looked_at_of_a_long_text_is_told() -> None:
    first = "ALTER ROLE a PASSWORD 'x';\n"
    filler = "SELECT a.b, 'some text' FROM a WHERE a.c = 3;\n" * (16 * 1024 * 1024 // 47)
    result = redactor().apply(statement(first + filler + first))
    assert result["db.query.text"] == first.replace("'x'", f"'{marker(b'x')}'") + filler + first
    size = len(first + filler + first)
    assert {"field": "db.query.text", "unsearched": size - 1024 * 1024} in result["secrets"]


PIECES = st.sampled_from(
    [*UNITS, "x", " ", "\n", ";", "=", ")", "\udc80", "ü", "\0", "VALUES", "-----END PRIVATE KEY-----"]
)


check_record: Callable[[Record], None] = load(FUZZ / "fuzz_secrets.py").check_record


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join), st.sampled_from(["postgresql", "mysql", "shell", "message"]))
def test_any_text_keeps_the_invariant(text: str, group: str) -> None:
    check_record(record_with(group, text)[0])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(PIECES, st.sampled_from(["mysql", "curl", "-p", "-u", "set", "--password", "token"])), max_size=8
    )
)
def test_any_words_keep_the_invariant(words: list[str]) -> None:
    check_record({"kind": "exec", "argv": words})


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "exec"},
        {"kind": "exec", "argv": None},
        {"kind": "exec", "argv": []},
        {"kind": "exec", "argv": [None, 3, ["password=x"]]},
        {"kind": "statement", "db.query.text": 3, "params": "password"},
        {"kind": "statement", "db.query.text": "password = $99999", "params": ["x"]},
        {"kind": "command_input", "text": None, "comm": 3},
        {"kind": "delegation", "detail": {3: {"password": None}, "token": ["a"]}},
        {"kind": "nothing that is known", "text": "password='x'"},
    ],
)
def test_record_of_an_unexpected_shape_does_not_raise(record: Record) -> None:
    assert isinstance(redactor().apply(record), dict)


def test_depth_of_bodies_within_bodies_is_bounded() -> None:
    text = "".join(f"$a{i}$ INSERT INTO t (password) VALUES (" for i in range(3000))  # noqa: S608 -- as above
    redactor().apply(statement(text))
    deep: object = "password='x'"
    for _ in range(200):
        deep = [deep]
    redactor().apply({"kind": "delegation", "detail": {"a": deep}})


def test_markers_in_the_text_of_an_agent_are_not_taken_for_ours() -> None:
    text = f"SELECT '{marker(b'x')}'; ALTER ROLE a PASSWORD 'x'"
    result = redactor().apply(statement(text))
    assert len(result["secrets"]) == 1
    assert re.fullmatch(r"SELECT '\[secret .*\]'; ALTER ROLE a PASSWORD '\[secret .*\]'", result["db.query.text"])
