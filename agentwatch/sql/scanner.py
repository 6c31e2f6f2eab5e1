"""Tables of text that no parser takes: broken, cut, refused or too long. Everything here is ``partial``.

In: a folded text. Out: an Analysis with the names that stand where SQL expects a table. The scanner knows words and
punctuation, not grammar: it follows FROM lists, JOIN, INTO, UPDATE, TABLE and the like by position, keeps the names
that WITH defines (for the whole text: it knows no scopes) and forgets its place at each ``;``.

It reads tokens with one regular expression of its own instead of sqlglot's tokenizer, which raises on the first
literal that is not closed (as cut text has them) and gives nothing back. Linear in time; never raises.
"""

# ruff: noqa: SLF001 -- the table of methods below belongs to the class

from __future__ import annotations

import re
from typing import NamedTuple

from agentwatch.sql.model import Analysis, TableRef, conclude
from agentwatch.sql.names import cut_name, fold_case

MAX_PREFIX_CHARACTERS = 512 * 1024
MAX_SUFFIX_CHARACTERS = 64 * 1024
"""Of a longer folded text only these two ends are read; half a second of work."""

_TOKEN = re.compile(
    r"""
      (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*"|`[^`]*`|\[[A-Za-z_][^]\n]*\])
    | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    | (?P<other>'[^']*'|/\*\*/|\d[\w.]*|[^\sA-Za-z_\x80-\U0010ffff])
    """,
    re.VERBOSE,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMMANDS = _words(
    "SELECT INSERT UPDATE DELETE MERGE COPY TRUNCATE CREATE ALTER DROP EXPLAIN BEGIN COMMIT ROLLBACK SET SHOW VACUUM "
    "ANALYZE LOCK GRANT REVOKE COMMENT REINDEX CLUSTER REFRESH DECLARE FETCH PREPARE EXECUTE DO CALL VALUES TABLE "
    "START SAVEPOINT RELEASE CLOSE DEALLOCATE RESET LISTEN NOTIFY DISCARD ABORT END REPLACE MOVE"
)
_OBJECTS = _words("TABLE VIEW INDEX SEQUENCE FUNCTION PROCEDURE SCHEMA TYPE TRIGGER POLICY RULE ROLE USER DATABASE")
_NOT_NAMES = _words(
    "SELECT WHERE SET VALUES FROM JOIN ON USING GROUP ORDER BY HAVING LIMIT OFFSET UNION EXCEPT INTERSECT RETURNING "
    "WITH AS AND OR NOT NULL IN IS LEFT RIGHT FULL INNER OUTER CROSS NATURAL INTO UPDATE DELETE INSERT MERGE DEFAULT "
    "WHEN THEN ELSE END CASE CREATE DROP ALTER TRUNCATE FOR FETCH WINDOW DISTINCT ALL NOTHING DO"
)
_FILLERS = _words("ONLY LATERAL TABLE IF NOT EXISTS CONCURRENTLY TEMP TEMPORARY UNLOGGED IGNORE VERBOSE")
# FROM inside the parentheses of these is no clause.
_FROM_FUNCTIONS = _words("EXTRACT SUBSTRING TRIM OVERLAY POSITION")
_ENDS_LIST = _words(
    "WHERE GROUP ORDER HAVING LIMIT OFFSET UNION EXCEPT INTERSECT SET SELECT RETURNING WINDOW FETCH FOR VALUES"
)
_BEGINS_LIST = _words("FROM TABLE VIEW TRUNCATE LOCK VACUUM ANALYZE USING")
# UPDATE after these is no command: FOR [NO KEY] UPDATE, DO UPDATE, ON UPDATE CASCADE, BEFORE INSERT OR UPDATE.
_NO_UPDATE = _words("FOR DO KEY ON OR BEFORE AFTER THEN")
# A name with parentheses after it is a function after these, and a table with its columns elsewhere.
_BEFORE_FUNCTIONS = _words("FROM JOIN USING ,")
_MANAGES = _words("CREATE ALTER DROP TRUNCATE GRANT REVOKE COMMENT REINDEX")
_ALWAYS = {"JOIN": "read", "INTO": "write", "REFERENCES": "read"}
# A word that announces tables only as the command itself.
_AS_COMMAND = {"TRUNCATE": "write", "VACUUM": "write", "CLUSTER": "write", "LOCK": "read", "ANALYZE": "read"}
_BEFORE_BODIES = ("AS", "MATERIALIZED")
_MAX_COLUMNS = 400
"""Tokens of a list of columns that are passed over: up to the FROM or TO of a COPY, back to the name in a WITH."""
_MAX_FILLERS = 8
_MAX_SCOPES = 64
"""WITHs that may define one name. These limits keep the scanner linear; beyond them a name may be listed wrongly."""


_ESCAPE = re.compile(r"\\([0-9A-Fa-f]{4})")  # of U&"...", with the usual escape character


class _Token(NamedTuple):
    text: str
    upper: str  # of a word, else ""
    kind: str


def scan(text: str, reason: str, *, fold_names: bool = True) -> Analysis:
    """Return what a text seems to name, with ``reason`` for why no parser answered."""
    scanner = _Scanner(_tokens(text), fold_names=fold_names)
    scanner.run()
    return conclude(scanner.operation, scanner.refs, reason, None, max(scanner.statements, 1))


def _tokens(text: str) -> list[_Token]:
    if len(text) > MAX_PREFIX_CHARACTERS + MAX_SUFFIX_CHARACTERS:
        text = f"{text[:MAX_PREFIX_CHARACTERS]} {text[-MAX_SUFFIX_CHARACTERS:]}"
    tokens: list[_Token] = []
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup or "", match[0]
        if found != "/**/":
            tokens.append(_Token(found, found.upper() if kind == "word" else "", kind))
    return tokens


class _Scanner:
    def __init__(self, tokens: list[_Token], *, fold_names: bool) -> None:
        self.tokens = [*tokens, _Token("", "", "end"), _Token("", "", "end")]
        self.fold_names = fold_names
        self.refs: list[tuple[int, TableRef]] = []
        self.operation: str | None = None
        self.statements = 0
        self.ctes: dict[str, list[tuple[int, int]]] = {}  # name: where it hides a table, from token to token
        self.command = ""
        self.command_at = -1
        self.object = ""  # what a CREATE, ALTER or DROP is about
        self.list_access: list[str] = [""]  # of each open parenthesis: the access of a list of tables it is in
        self.functions: list[str] = [""]  # of each open parenthesis: the word before it
        self.bodies = 0  # of WITH, open here

    def run(self) -> None:
        index, end = 0, len(self.tokens) - 2
        self._collect_ctes()
        while index < end:
            index = self._step(index)

    def _collect_ctes(self) -> None:
        # name AS [NOT] [MATERIALIZED] ( after WITH, RECURSIVE or a comma; a list of columns may stand before AS. The
        # name holds from the end of its body (with RECURSIVE from its beginning) to the end of the parentheses around.
        closes, around = self._parentheses()
        end = len(self.tokens)
        recursive = False
        for index, token in enumerate(self.tokens):
            if token.upper in ("WITH", "RECURSIVE"):
                recursive = token.upper == "RECURSIVE"
            if token.upper == "AS" and index > 0:
                after = index + 1
                while self.tokens[after].upper in ("NOT", "MATERIALIZED"):
                    after += 1
                before = self._before_columns(index - 1)
                if self.tokens[after].text == "(" and self._begins_cte(before):
                    first = index if recursive else closes.get(after, end)
                    last = closes.get(around[index], end)
                    hidden = self.ctes.setdefault(self._name(self.tokens[before]), [])
                    if len(hidden) < _MAX_SCOPES:
                        hidden.append((first, last))

    def _parentheses(self) -> tuple[dict[int, int], list[int]]:
        # Where each one closes, and for each token the innermost one that is open there (-1: none).
        closes: dict[int, int] = {}
        around: list[int] = []
        opened = [-1]
        for index, token in enumerate(self.tokens):
            if token.text == ")" and len(opened) > 1:
                closes[opened.pop()] = index
            around.append(opened[-1])
            if token.text == "(":
                opened.append(index)
        return closes, around

    def _is_cte(self, name: str, index: int) -> bool:
        return any(first <= index <= last for first, last in self.ctes.get(name, ()))

    def _before_columns(self, index: int) -> int:
        if self.tokens[index].text != ")":
            return index
        for back in range(index, max(index - _MAX_COLUMNS, 0), -1):
            if self.tokens[back].text == "(":
                return back - 1
        return index

    def _begins_cte(self, index: int) -> bool:
        before = self.tokens[index - 1] if index > 0 else None
        return before is not None and (before.upper in ("WITH", "RECURSIVE") or before.text == ",")

    def _step(self, index: int) -> int:
        token = self.tokens[index]
        if token.text == "(":
            self.functions.append(self.tokens[index - 1].upper if index else "")
            self.bodies += self.functions[-1] in _BEFORE_BODIES
            self.list_access.append("")
            if index and self.tokens[index - 1].upper in ("FROM", "JOIN"):
                return self._table(index + 1, "read", calls=True)  # FROM (a JOIN b)
        elif token.text == ")":
            if len(self.functions) > 1:
                self.bodies -= self.functions.pop() in _BEFORE_BODIES
                self.list_access.pop()
        elif token.text == ";":
            self.command, self.functions, self.list_access, self.bodies = "", [""], [""], 0
        elif token.text == "," and self.list_access[-1]:
            return self._table(index + 1, self.list_access[-1], calls=True)
        elif token.upper:
            return self._word(index, token.upper)
        return index + 1

    def _word(self, index: int, word: str) -> int:
        if word in _COMMANDS and self._is_command(index, word):
            self._begin(index, word)
        if word in _ENDS_LIST:
            self.list_access[-1] = ""
        access = self._expects(index, word)
        if not access:
            return index + 1
        if word in _BEGINS_LIST:
            self.list_access[-1] = access
        return self._table(index + 1, access, calls=word in _BEFORE_FUNCTIONS)

    def _is_command(self, index: int, word: str) -> bool:
        if self.command:
            return False
        return index == 0 or word not in ("TABLE", "SET", "END")

    def _begin(self, index: int, word: str) -> None:
        if self.bodies:
            return
        self.command, self.command_at, self.object = word, index, ""
        self.statements += 1
        if word in ("CREATE", "ALTER", "DROP"):
            self.object = next((t.upper for t in self.tokens[index + 1 : index + 5] if t.upper in _OBJECTS), "")
            word = f"{word} {self.object}".rstrip()
        if self.operation is None:
            self.operation = {"VALUES": "SELECT", "TABLE": "SELECT", "REPLACE": "INSERT"}.get(word, word)

    def _expects(self, index: int, word: str) -> str:
        # The access of the table that a word announces; "" when it announces none.
        before = self.tokens[index - 1].upper if index else ""
        if word in _ALWAYS:
            return _ALWAYS[word]
        if word in _AS_COMMAND:
            return _AS_COMMAND[word] if self.command == word else ""
        special = _BY_WORD.get(word)
        return special(self, index, before) if special is not None else ""

    def _update(self, _: int, before: str) -> str:
        return "" if before in _NO_UPDATE else "write"

    def _using(self, _: int, __: str) -> str:
        return "read" if self.command in ("DELETE", "MERGE") else ""

    def _table_word(self, _: int, before: str) -> str:
        if before in _AS_COMMAND:
            return ""  # the word before took the name
        return "write" if self.command in _MANAGES and before != "AS" else "read"

    def _view(self, _: int, __: str) -> str:
        return "write" if self.command in _MANAGES else ""

    def _on(self, _: int, __: str) -> str:
        announces = self.command in ("GRANT", "REVOKE") or self.object in ("INDEX", "TRIGGER", "POLICY")
        return "write" if announces and self.functions == [""] else ""

    def _partition(self, _: int, before: str) -> str:
        return "write" if before in ("ATTACH", "DETACH") else ""

    def _of(self, _: int, before: str) -> str:
        return "write" if before == "PARTITION" else ""

    def _copy(self, index: int, _: str) -> str:
        if self.tokens[index + 1].text == "(" or self.command_at != index:
            return ""
        following = self.tokens[index + 1 : index + _MAX_COLUMNS]
        direction = next((token.upper for token in following if token.upper in ("FROM", "TO")), "")
        return "write" if direction == "FROM" else "read"

    def _from(self, _: int, before: str) -> str:
        if self.functions[-1] in _FROM_FUNCTIONS or before == "DISTINCT":
            return ""
        if before == "DELETE":
            return "write"
        if self.command in ("COPY", "REVOKE", "FETCH", "MOVE", "SHOW"):
            return "read" if len(self.functions) > 1 else ""
        return "read"

    def _table(self, index: int, access: str, *, calls: bool) -> int:
        # Take the name at ``index``, if one stands there, and return where reading goes on.
        start = index
        while self.tokens[index].upper in _FILLERS and index - start < _MAX_FILLERS:
            index += 1
        parts: list[str] = []
        while self.tokens[index].kind in ("word", "quoted") and self.tokens[index].upper not in _NOT_NAMES:
            parts.append(self._name(self.tokens[index]))
            index += 1
            if self.tokens[index].text != ".":
                break
            index += 1
        if not parts:
            return start
        is_function = calls and self.tokens[index].text == "("
        hidden = access == "read" and len(parts) == 1 and self._is_cte(parts[0], index - 1)
        if not is_function and not hidden:
            schema = parts[-2] if len(parts) > 1 else None
            catalog = parts[-3] if len(parts) > 2 else None  # noqa: PLR2004 -- catalog.schema.name
            self.refs.append((index, TableRef(parts[-1], schema, access, catalog)))
        return index

    def _name(self, token: _Token) -> str:
        if token.kind == "quoted":
            text = token.text
            if text[0] in "uU":
                return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text[3:-1])
            return cut_name(text[1:-1].replace('""', '"')) if text[0] == '"' else text[1:-1]
        return cut_name(fold_case(token.text)) if self.fold_names else token.text


_BY_WORD = {
    "FROM": _Scanner._from,
    "UPDATE": _Scanner._update,
    "USING": _Scanner._using,
    "TABLE": _Scanner._table_word,
    "ON": _Scanner._on,
    "COPY": _Scanner._copy,
    "VIEW": _Scanner._view,
    "PARTITION": _Scanner._partition,
    "OF": _Scanner._of,
}
