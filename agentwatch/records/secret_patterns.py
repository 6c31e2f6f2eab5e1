r"""What a credential looks like: names, token formats and separators, as regular expressions over bytes.

All patterns are made for text in ASCII lower case unless they say otherwise, so that none needs ``re.IGNORECASE`` and
each search begins with a set of first bytes. All are linear: runs are bounded or possessive, and a pattern whose run
may begin anywhere has a lookbehind that lets it begin only once. Possessive are only runs of single characters: with
groups CPython 3.11 matches wrongly before 3.11.5 (gh-101955, gh-106052).

What others do, and what was taken of it:

* pgaudit (``log_audit_event``) cuts role and user-mapping commands off behind the first ``password``. It asks the
  parser which command it is, so a statement that failed to parse, ``CREATE SUBSCRIPTION`` and every function that takes
  a connection string keep theirs (its issues 166, 189, 201), and what stood behind the password is lost. Here nothing
  is parsed, and only the literal goes.
* gitleaks asks for a keyword before it runs a rule, and has formats of tokens with fixed prefixes: both taken. Its
  generic rule adds entropy; passwords that people choose have little, so here the name alone decides.
* detect-secrets asks for quotes around values in languages that have them, which tells ``password = 'x'`` from
  ``password = other_column``: taken for SQL and for code. Its list of false positives (``none``, ``<password>``,
  ``${...}``) is PLACEHOLDER and REFERENCE here.
* Datadog's agent joins a command line with blanks, replaces, and splits it again: an argument with blanks falls apart.
  Its short options are not known. Here arguments stay arguments, and PROGRAMS has options.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_VALUE_BYTES = 16 * 1024
"""A longer value stays as it is: no credential is longer (RSA with 16384 bits in PEM is 12.7 kB), and what is hidden
must not become a place to hide in."""
MAX_QUOTED_BYTES = 1024
"""A value in quotes outside of SQL, which also must end on its line: no lexer says what its quotes are."""
MAX_ALONE_BYTES = 256
"""A value without quotes that is all that is left of its line (``token: abc``)."""
MAX_PREFIX_BYTES = 256
"""How far in front of a name is looked for what it is a part of."""

HINTS: tuple[str, ...] = (
    "://",
    "kia",
    "sia",
    "aiza",
    "npm_",
    "hf_",
    "dop_v1",
    "k_live",
    "k_test",
    "md5",
    "pat_",
    "ya29",
    "hvs.",
    "hvb.",
    "sg.",
)
HINTS = (*HINTS, "eyj", "bearer", "cookie", "program")
HINTS_BEHIND: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("-", ("sk-", "gl", "xox", "xapp-", "pypi-", "gocspx-", "age-", "scram-", "-begin")),
    ("gh", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("$", ("$2a$", "$2b$", "$2x$", "$2y$", "$1$", "$5$", "$6$", "$7$", "$y$", "$argon2")),
)
"""One of HINTS, or one of those behind their common part, is in whatever TOKEN, URL, BEARER, PEM and HEADER find."""
DOLLAR_TAG = re.compile(r"\$[a-z_$]")
SHORT_OPTION = re.compile(r"-[aAkKpPsuUwW]")

_KEY = rb"""
  passw(?:or)?d(?:[_-]?(?:hash|digest))? (?<!nopasswd)(?<!no-passwd)(?<!nopassword)(?<!no-password)
| passphrase | (?:store|key)pass
| pass(?<![a-z]pass) | p(?:s)?wd(?<![a-z]pwd)(?<![a-z]pswd)
| secret(?:[_-]?(?:access[_-]?)?key(?:[_-]base)?|[_-]id)?
| (?:api|access|account|auth|encryption|private|signing|master|storage)[_-]?key
| token(?<!page[_-]token)(?<!pagetoken)(?<!next[_-]token)(?<!nexttoken)(?<!sync[_-]token)(?<!pad[_-]token)
       (?<!eos[_-]token)(?<!bos[_-]token)(?<!unk[_-]token)(?<!stop[_-]token)(?<!starting[_-]token)(?<!continuation[_-]token)
| rediscli_auth | _auth(?:token)?(?<![a-z0-9]_auth)(?<![a-z0-9]_authtoken)
"""
KEY = re.compile(rb"(?:" + _KEY + rb")(?![a-z0-9_])", re.VERBOSE)
"""The end of a name whose value is a credential: ``DB_PASSWORD``, not ``password_file``, not ``passwords``."""
KEY_AT_END = re.compile(rb"(?:" + _KEY + rb")\Z", re.VERBOSE)
WORKING_DIRECTORY = re.compile(rb"(?:\A|[^A-Za-z_])(?:OLD)?PWD\Z")
"""In its own case: the one such name that every shell sets."""

# --- formats that are credentials wherever they stand; in their own case -------------------------------------------
TOKEN = re.compile(
    rb"""
      (?<![A-Za-z0-9])(?:
        (?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])
      | gh[pousr]_[A-Za-z0-9]{36,255}
      | github_pat_[A-Za-z0-9_]{22,255}
      | AIza[A-Za-z0-9_-]{35}
      | npm_[A-Za-z0-9]{36}
      | hf_[A-Za-z0-9]{30,64}
      | dop_v1_[a-f0-9]{64}
      | [sr]k_(?:live|test)_[A-Za-z0-9]{10,128}
      | md5[0-9a-f]{32}(?![0-9A-Za-z])
      )
    | (?<![\w-])(?:
        gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat)-[\w-]{20,255}
      | xox[abeoprs]-[A-Za-z0-9-]{10,255} | xapp-[A-Za-z0-9-]{10,255}
      | sk-(?=[a-z-]{0,16}[A-Za-z-]{0,32}[0-9])[\w-]{20,255}
      | dckr_pat_[\w-]{27,64} | pypi-AgE[\w-]{50,255}
      | GOCSPX-[\w-]{28} | ya29\.[\w-]{20,512} | hv[sb]\.[\w-]{24,255}
      | SG\.[\w-]{16,64}\.[\w-]{16,128}
      | AGE-SECRET-KEY-1[A-Z0-9]{58}
      | eyJ[\w-]{8,8192}\.[\w-]{8,8192}(?:\.[\w-]{0,8192})?
      | SCRAM-SHA-256\$[0-9]{1,9}:[A-Za-z0-9+/=]{4,128}\$[A-Za-z0-9+/=]{8,128}:[A-Za-z0-9+/=]{8,128}
      )
    | (?<![\w$])(?:
        \$2[abxy]\$[0-9]{2}\$[./A-Za-z0-9]{53}
      | \$[1567y]\$(?:rounds=[0-9]{1,9}\$)?[./A-Za-z0-9]{0,64}\$[./A-Za-z0-9]{22,128}
      | \$argon2(?:id|i|d)\$v=[0-9]{1,4}\$m=[0-9]{1,9},t=[0-9]{1,9},p=[0-9]{1,9}
        \$[A-Za-z0-9+/]{8,128}\$[A-Za-z0-9+/]{16,172}
      )
    """,
    re.VERBOSE,
)
"""Tokens with a prefix of their own, JWTs, and verifiers (PostgreSQL's md5 and SCRAM, crypt(3), argon2)."""
URL = re.compile(rb"://[^\s/?#@:'\"<>]{0,256}:([^\s/?#'\"<>]{1,1024})@")
"""The password in ``scheme://user:password@host``, to the last ``@`` of the authority."""
BEARER = re.compile(rb"bearer\s{1,8}+((?=[\w.~+/-]{0,64}[0-9]|[\w.~+/-]{32})[\w.~+/-]{8,8192}={0,2})")
HEADER = re.compile(
    rb"(?:authorization\\?[\"']?\s{0,8}+[:=,]\s{0,8}+\\?[\"']?(?:(?:bearer|basic|token|digest|apikey|bot)\s{1,8}+)?"
    rb"|cookie\\?[\"']?\s{0,8}+:\s{0,8}+\\?[\"']?)([^\s\"'\\$<{*][^\"'\\\r\n]{0,8191})"
)
"""The value of such a header of HTTP, to the end of its line or quotes; servers take no more than 8 KiB."""
PEM = re.compile(rb"-----begin [a-z0-9 ]{0,32}private key(?: block)?-----")
PEM_END = b"-----end "
PEM_BODY = re.compile(
    rb"(?:\s{0,2}(?:proc-type|dek-info|version|comment):[^\r\n\\]{0,128}+){0,4}"
    rb"(?:[\s\\>|\"',-]++|[a-z0-9+/=]{16,8192}+)*(?:[a-z0-9+/=]{1,64}+(?:\s|\\[nr]){0,4})?"
)
"""Base64 in long runs, and a short one at the end: prose and statements between the two lines are none."""

# --- between a name and its value ----------------------------------------------------------------------------------
_GAP = rb"\s*+(?:(?:/\*[^*]{0,256}+\*/|--[^\n]*+\n)\s*+){0,4}"
SQL_AFTER_KEY = re.compile(
    rb"[\"`\]]?(?:\s*+::\s*+[a-z]\w{0,63}|\s*+\))?(?:" + _GAP + rb"(?:=>|:=|==?|<>|!=|!?~~?\*?|not\b|like\b|ilike\b|"
    rb"in\b|to\b|is\s+(?:not\s+)?distinct\s+from\b|any\b|for\s+['\"`]?[\w.%-]{1,128}['\"`]?"
    rb"(?:@['\"`]?[\w.%:-]{1,255}['\"`]?)?\s*+=|(?<=[=\s])(?:crypt|password|lower|md5)\b)){0,4}"
    + _GAP
    + rb"(\(?)"
    + _GAP
)
"""What may stand in SQL between a name and its literal; group 1: a parenthesis."""
SQL_LITERAL = re.compile(rb"(?:e|n|b|x|u&|_utf8mb4\s?|binary\s)?(?=['\"$])")
SQL_PARAMETER = re.compile(rb"\$([0-9]{1,5})|\?")
SQL_GAP = re.compile(_GAP + rb"(?:(?:crypt|password|md5|lower)\s*+\(\s*+)?")
SQL_COMMA = re.compile(_GAP + rb"," + _GAP)
DOLLAR = re.compile(rb"\$(?:[a-z_\x80-\xff][a-z0-9_\x80-\xff]*+)?\$")
IDENTIFIED = re.compile(
    rb"identified" + _GAP + rb"(?:(?:with|via)\s+['\"`]?\w{1,64}['\"`]?\s+)?(?:by|as|using)\s+(?:password\s+)?"
)
REPLACE = re.compile(_GAP + rb"replace" + _GAP)
FIRST_ARGUMENT = re.compile(rb"crypt\s*+\(\s*+")
SECOND_ARGUMENT = re.compile(
    rb"(?:pgp_sym_(?:en|de)crypt(?:_bytea)?|aes_(?:en|de)crypt)\s*+\("
    rb"(?:[^,()'$;]++|'[^']*+'|\$[0-9]|\([^()]{0,256}+\)){1,16},\s*+"
)
REVERSED = re.compile(rb"\s{0,8}+(?:=|<>|!=)\s{0,8}+((?:[\w\"`]{1,63}\.){0,3}[\w\"`]{1,64})")
INSERT = re.compile(
    rb"into\s{1,8}+[\w.\"`\x80-\xff]{1,256}\s{0,8}+\(([^()]{1,4096}+)\)\s{0,32}+(?:overriding\s+\w{4,6}\s+value\s+)?values?(?!\w)"
)
SETS = re.compile(rb"set_config\s{0,8}\(\s{0,8}\Z")
RUNS_PROGRAM = re.compile(rb"program\s{1,8}\Z")

AFTER_KEY = re.compile(rb"(?:''|\\{0,3}[\"'`]?\]?)[ \t]{0,64}+(=>|:=|={1,3}|!==?|<>|:|)[ \t]{0,64}+")
"""The same outside of SQL; group 1: the separator, nothing where only blanks stand between."""
OPENER = re.compile(rb"\\{0,3}[\"']")
UNQUOTED = re.compile(rb"(?:[^\s'\"`;|<>\\&,]++|\\[^\sn]|[&,](?![\w.%-]{0,64}=|\s|&|\Z))+")
"""A value without quotes: to a blank, to ``;``, to ``&`` or ``,`` where another name begins."""
CLOSERS = b")]}"
STILL_TO_READ = re.compile(rb"(?:\A|\s)[$<{%*][^\s]*\Z")
LINE_START = re.compile(rb"(?:\A|[\r\n\"'{,\[])[ \t]{0,64}(?:-[ \t])?[\w.-]{0,64}\Z")
"""In front of ``NAME: value`` without quotes: YAML, headers."""
LINE_END = re.compile(rb"[ \t]{0,8}(?:[\r\n\"'},]|\Z)")
COMPLAINT = re.compile(rb"(?:unrecognized|unexpected|invalid|illegal|missing|unknown|bad)[ _][\w ]{0,16}\Z")
"""In front of ``token: "x"`` in a server's message: it is a token of a grammar."""

# --- values that are none ------------------------------------------------------------------------------------------
MARKER = re.compile(rb"\[secret [0-9]{1,20} bytes hmac [0-9a-f]{16}\]")
"""What a credential is replaced by."""
PLACEHOLDER = re.compile(
    rb"(?:\*+|x{3,}|\.{2,}|-+|<[^<>]{0,128}>|\[?redacted\]?|none|null|nil|undefined|true|false|yes|no|on|off|required|"
    rb"optional|prompt|str|string|bytes|text|int|bool|any|char|varchar|not|and|or|is|in|as|from|where|optional\[.*|"
    rb"\?|\{.{0,128}\}|%\(?\w{0,64}\)?[sldr])[,):]?\Z",
    re.DOTALL,
)
REFERENCE = re.compile(
    rb"(?:\$\{.*\}|\$\(.*|\$\w+|`.*|[a-z_][\w.]*+[(\[][^()]{0,256}[)\]]+|@\w+|"
    rb"(?:[a-z_]\w*+\.)+[\w]*(?:passw(?:or)?d|pass|pwd|secret|token|key)|:\w+)\Z",
    re.DOTALL,
)
"""A variable, a command's output, a call: where the shell or an interpreter still will read it."""
PATH = re.compile(rb"(?:~?\.{0,2}/|file:|env:|fd:)|.{0,256}\.(?:pem|key|pub|crt|txt|json|ya?ml)\Z", re.DOTALL)

# --- programs ------------------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """The short options of a program whose value is a credential.

    ``attached``: letters whose value may stand in the same word; ``separate``: in the next word. ``after``: in both the
    credential begins behind the first of this byte (``user:password``). ``prompts``: its ``--password`` takes no next
    word. ``needs``: counts only behind this word (``docker login``).
    """

    attached: bytes = b""
    separate: bytes = b""
    after: bytes = b""
    prompts: bool = False
    needs: bytes = b""


_MYSQL = Program(attached=b"p", prompts=True)
_LIBPQ = Program(prompts=True)
_LOGIN = Program(attached=b"p", separate=b"p", needs=b"login")
_P = Program(attached=b"p", separate=b"p")
_LDAP = Program(attached=b"w", separate=b"w")
_TDS = Program(attached=b"P", separate=b"P")
_USER = Program(attached=b"uU", separate=b"uU", after=b":")


def _all(program: Program, names: str) -> dict[bytes, Program]:
    return dict.fromkeys(names.encode().split(), program)


PROGRAMS: dict[bytes, Program] = {
    **_all(
        _MYSQL, "mysql mysqldump mysqladmin mysqlimport mysqlshow mysqlcheck mysqlslap mysqlbinlog mysqlpump mysqlsh"
    ),
    **_all(_MYSQL, "mariadb mariadb-dump mariadb-admin mariadb-import mariadb-show mariadb-check mariadb-binlog mycli"),
    **_all(
        _LIBPQ, "psql pg_dump pg_dumpall pg_restore pg_basebackup pg_receivewal pg_recvlogical pgbench createdb dropdb"
    ),
    **_all(_LIBPQ, "createuser dropuser vacuumdb reindexdb clusterdb pgcli pg_isready"),
    **_all(_P, "sshpass mongo mongosh mongodump mongorestore mongoexport mongoimport mongostat cqlsh impala-shell"),
    **_all(_LDAP, "ldapsearch ldapadd ldapmodify ldapdelete ldapwhoami ldapcompare ldapmodrdn"),
    **_all(_TDS, "sqlcmd bcp tsql osql isql"),
    **_all(_LOGIN, "docker podman buildah skopeo nerdctl helm oc az crane cf"),
    b"curl": _USER,
    b"http": Program(attached=b"a", separate=b"a", after=b":"),
    b"https": Program(attached=b"a", separate=b"a", after=b":"),
    b"redis-cli": Program(attached=b"a", separate=b"a"),
    b"valkey-cli": Program(attached=b"a", separate=b"a"),
    b"ldappasswd": Program(attached=b"was", separate=b"was"),
    b"smbclient": Program(attached=b"U", separate=b"U", after=b"%"),
    b"lftp": Program(attached=b"u", separate=b"u", after=b","),
    b"zip": Program(attached=b"P", separate=b"P"),
    b"unzip": Program(attached=b"P", separate=b"P"),
    b"7z": Program(attached=b"p"),
    b"openssl": Program(separate=b"kK", prompts=True),
}
MYSQL_CLIENTS = frozenset(b"mysql mariadb mysqlsh mycli".split())
SQL_CLIENTS = MYSQL_CLIENTS | {b"psql", b"pgcli"}
SQL_OPTION = re.compile(rb"(?:-[ce]|--command|--execute)\Z")
"""In front of a statement in the words of such a program."""
SETS_VARIABLE = re.compile(rb"(?:--?e|--env|--from-literal|--build-arg|--set|--set-string|env|/usr/bin/env|/bin/env)\Z")
"""In front of a word that is NAME=VALUE, blanks in the value or not."""
LONG_WITH_USER = re.compile(rb"--(?:proxy-)?user\Z|--auth\Z")
LONG_ALSO = re.compile(rb"--oauth2-bearer\Z")
OPENSSL_PASS = re.compile(rb"pass:(?=.)", re.DOTALL)
OPTION = re.compile(rb"--?[\w.-]{0,128}\Z")
PLAIN_PREFIX = re.compile(rb"[^\s?'\"{]{0,256}\Z")
"""In front of a name in an argument that is all ``NAME=VALUE``."""
NEXT_NAME = re.compile(rb"[&;,](?=[\w.%-]{1,64}=)")
SHELL_WORD = re.compile(rb"(?:[^\s'\"\\;|&()<>]|\\(?s:.)|'[^']*+'?|\"(?:[^\"\\]++|\\(?s:.))*\"?)+|[;|&()]")
NAMES_A_SECRET = re.compile(rb"(?:id|src|source|type|target)=")
