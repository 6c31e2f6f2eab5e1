"""The tables that PostgreSQL's parse tree names: libpg_query's JSON, decoded, in; references out.

The walk keeps a stack of its own (a tree may be 15,000 levels deep) and follows three rules:

* a RangeVar is a table that is read, unless `_WRITES` says that its place is written or `_SKIPS` that it is
  no table there (a sequence, a constraint, a row lock's alias);
* an unqualified name that a WITH in scope defines is no table; a target is one nevertheless, as in the server;
* what touches tables that the text does not name is noted as unknown, with its reason.

Node and field names are those of PostgreSQL's src/include/nodes/parsenodes.h. Views and system catalogs are
tables as written; what a view, a trigger, a foreign key or a called function touches is not in the text.
"""

# ruff: noqa: SLF001 -- the table of methods below belongs to the class

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentwatch.sql.model import TableRef

if TYPE_CHECKING:
    from collections.abc import Callable

Fields = dict[str, Any]
Scope = frozenset[str]
"""Names that WITH defines where a node stands."""

_NO_SCOPE: Scope = frozenset()
_WRITES = {
    "InsertStmt": ("relation",),
    "UpdateStmt": ("relation",),
    "DeleteStmt": ("relation",),
    "MergeStmt": ("relation",),
    "TruncateStmt": ("relations",),
    "CreateStmt": ("relation",),
    "ViewStmt": ("view",),
    "RefreshMatViewStmt": ("relation",),
    "IndexStmt": ("relation",),
    "ClusterStmt": ("relation",),
    "RuleStmt": ("relation",),
    "CreateTrigStmt": ("relation",),
    "CreatePolicyStmt": ("table",),
    "AlterPolicyStmt": ("table",),
    "CreateStatsStmt": ("relations",),
    "PartitionCmd": ("name",),
    "IntoClause": ("rel",),
}
_SKIPS = {
    "ConstraintsSetStmt": ("constraints",),
    "CreateSeqStmt": ("sequence",),
    "AlterSeqStmt": ("sequence",),
    "CompositeTypeStmt": ("typevar",),
    "AlterObjectDependsStmt": ("relation", "object"),
}
# The place of a struct that JSON gives without the name of its type.
_BARE = {"into": "IntoClause", "intoClause": "IntoClause"}
_UNKNOWN = {
    "DoStmt": "dynamic",
    "CallStmt": "call",
    "ExecuteStmt": "execute",
    "FetchStmt": "fetch",
    "AlterTableMoveAllStmt": "unnamed-tables",
    "DropOwnedStmt": "unnamed-tables",
    "ReassignOwnedStmt": "unnamed-tables",
    "DropdbStmt": "unnamed-tables",
    "ImportForeignSchemaStmt": "unnamed-tables",
    "RefreshMatViewStmt": "unnamed-tables",
}
_TABLE_OBJECTS = {"TABLE", "VIEW", "MATVIEW", "FOREIGN_TABLE"}
_PARTS_OF_TABLES = {"COLUMN", "TABCONSTRAINT", "TRIGGER", "POLICY", "RULE"}
_MAX_NAME_PARTS = 3


class Walk:
    """One walk over the statements of a text; `refs` and `unknown` grow as it goes."""

    def __init__(self, parse_body: Callable[[str], list[Fields] | None]) -> None:
        """``parse_body`` gives the statements of a function's body in SQL, None when it cannot."""
        self.refs: list[tuple[int, TableRef]] = []
        self.unknown: str | None = None
        self._parse_body = parse_body
        self._reads_only = False
        self._at = 0
        self._stack: list[tuple[Any, Scope]] = []

    def statement(self, kind: str, fields: Fields, location: int) -> None:
        """Take one statement, beginning at ``location``; EXPLAIN that does not ANALYZE reads what it names."""
        self._at = location
        self._reads_only = kind == "ExplainStmt" and not explain_runs(fields.get("options", ()))
        self._stack.append(({kind: fields}, _NO_SCOPE))
        while self._stack:
            value, scope = self._stack.pop()
            self._visit(value, scope)

    def _visit(self, value: Any, scope: Scope) -> None:
        if isinstance(value, list):
            self._stack.extend((item, scope) for item in value)
        elif isinstance(value, dict):
            kind = next(iter(value), "")
            if len(value) == 1 and kind[:1].isupper():
                self._struct(kind, value[kind], scope)
            else:
                self._struct("", value, scope)

    def _struct(self, kind: str, fields: Fields, scope: Scope) -> None:
        if "relname" in fields:
            self._read(fields, scope)
            return
        if kind in _UNKNOWN:
            self._note(_UNKNOWN[kind])
        with_clause = fields.get("withClause")
        if with_clause is not None:
            scope = self._with(with_clause, scope)
        special = _SPECIAL.get(kind)
        if special is not None and special(self, fields, scope):
            return
        writes, skips = _WRITES.get(kind, ()), _SKIPS.get(kind, ())
        for name, value in fields.items():
            if not isinstance(value, dict | list) or name in skips or name in ("withClause", "lockingClause"):
                continue
            if name in writes:
                self._write(value)
            elif name in _BARE:
                self._stack.append(({_BARE[name]: value}, scope))
            else:
                self._stack.append((value, scope))

    def _with(self, clause: Fields, scope: Scope) -> Scope:
        ctes = [cte.get("CommonTableExpr", {}) for cte in clause.get("ctes", ())]
        if clause.get("recursive"):
            scope |= {cte.get("ctename", "") for cte in ctes}
        for cte in ctes:
            self._stack.append((cte.get("ctequery"), scope))
            scope |= {cte.get("ctename", "")}
        return scope

    def _note(self, reason: str | None) -> None:
        self.unknown = self.unknown or reason

    def _read(self, relation: Fields, scope: Scope) -> None:
        if "schemaname" in relation or relation["relname"] not in scope:
            self._add(relation, "read")

    def _write(self, value: Any) -> None:
        for item in value if isinstance(value, list) else [value]:
            relation = item.get("RangeVar", item)
            if "relname" in relation:
                self._add(relation, "write")

    def _add(self, relation: Fields, access: str) -> None:
        ref = TableRef(
            relation["relname"],
            relation.get("schemaname"),
            "read" if self._reads_only else access,
            relation.get("catalogname"),
        )
        self.refs.append((relation.get("location", self._at), ref))

    def _named(self, names: Any, *, part: bool) -> None:
        # A name as a list of strings; with ``part`` its last one names something of the table.
        items = names.get("List", {}).get("items", []) if isinstance(names, dict) else []
        strings = [item.get("String", {}).get("sval", "") for item in items]
        if part:
            strings = strings[:-1]
        if 0 < len(strings) <= _MAX_NAME_PARTS:
            catalog, schema, name = ([None] * (_MAX_NAME_PARTS - len(strings))) + strings
            self.refs.append((self._at, TableRef(str(name), schema, "write", catalog)))

    # The kinds whose meaning lies in more than the place of their tables. True: nothing is left to walk.

    def _copy(self, fields: Fields, _: Scope) -> bool:
        if fields.get("is_from") and "relation" in fields:
            self._write(fields.pop("relation"))
        return False

    def _create(self, fields: Fields, _: Scope) -> bool:
        # A new partition changes what its parent holds; INHERITS and LIKE only read.
        if "partbound" in fields:
            self._write(fields.pop("inhRelations", []))
        return False

    def _foreign_table(self, fields: Fields, scope: Scope) -> bool:
        self._stack.append(({"CreateStmt": fields.pop("base", {})}, scope))
        return False

    def _object_with_relation(self, fields: Fields, _: Scope) -> bool:
        objtype = _short(fields.get("renameType") or fields.get("objectType") or fields.get("objtype"))
        if objtype == "COLUMN":
            objtype = _short(fields.get("relationType"))
        relation = fields.pop("relation", None)
        if objtype == "INDEX":
            self._note("index")
        elif relation is not None and objtype in _TABLE_OBJECTS | _PARTS_OF_TABLES:
            self._write(relation)
            if "newname" in fields and _short(fields.get("renameType")) in _TABLE_OBJECTS:
                self._write({**relation, "relname": fields["newname"]})
            if "newschema" in fields:
                self._write({**relation, "schemaname": fields["newschema"]})
        return False

    def _object_by_name(self, fields: Fields, _: Scope) -> bool:
        objtype = _short(fields.get("removeType") or fields.get("objtype"))
        if objtype == "INDEX" or (objtype == "SCHEMA" and fields.get("behavior") == "DROP_CASCADE"):
            self._note("index" if objtype == "INDEX" else "unnamed-tables")
        elif objtype in _TABLE_OBJECTS | _PARTS_OF_TABLES:
            for names in fields.get("objects", [fields.get("object")]):
                self._named(names, part=objtype in _PARTS_OF_TABLES)
        return True

    def _grant(self, fields: Fields, _: Scope) -> bool:
        if _short(fields.get("objtype")) == "TABLE":
            if fields.get("targtype") == "ACL_TARGET_OBJECT":
                self._write(fields.get("objects", []))
            elif fields.get("targtype") == "ACL_TARGET_ALL_IN_SCHEMA":
                self._note("unnamed-tables")
        return True

    def _vacuum(self, fields: Fields, _: Scope) -> bool:
        # ANALYZE alone reads its table; VACUUM rewrites it.
        if "rels" not in fields:
            self._note("unnamed-tables")
        elif fields.get("is_vacuumcmd"):
            for item in fields.pop("rels"):
                self._write(item.get("VacuumRelation", {}).get("relation", {}))
        return False

    def _cluster(self, fields: Fields, _: Scope) -> bool:
        if "relation" not in fields:
            self._note("unnamed-tables")
        return False

    def _reindex(self, fields: Fields, _: Scope) -> bool:
        kind = fields.get("kind")
        if kind == "REINDEX_OBJECT_TABLE":
            self._write(fields.get("relation", {}))
        else:
            self._note("index" if kind == "REINDEX_OBJECT_INDEX" else "unnamed-tables")
        return True

    def _publication(self, fields: Fields, _: Scope) -> bool:
        kinds = [o.get("PublicationObjSpec", {}).get("pubobjtype") for o in fields.get("pubobjects", ())]
        if fields.get("for_all_tables") or any(kind != "PUBLICATIONOBJ_TABLE" for kind in kinds):
            self._note("unnamed-tables")
        return False

    def _function(self, fields: Fields, _: Scope) -> bool:
        # A body as a string is not in the tree. One in SQL is parsed; another language is not understood.
        options = {d["defname"]: d.get("arg") for d in (o.get("DefElem", {}) for o in fields.pop("options", ())) if d}
        if "as" in options:
            body = options["as"].get("List", {}).get("items", [{}])[0].get("String", {}).get("sval", "")
            language = (options.get("language") or {}).get("String", {}).get("sval", "")
            statements = self._parse_body(body) if language.lower() == "sql" else None
            if statements is None:
                self._note("function-body")
            else:
                self._stack.extend((statement, _NO_SCOPE) for statement in statements)
        return False


_SPECIAL: dict[str, Callable[[Walk, Fields, Scope], bool]] = {
    "CopyStmt": Walk._copy,
    "CreateStmt": Walk._create,
    "CreateForeignTableStmt": Walk._foreign_table,
    "AlterTableStmt": Walk._object_with_relation,
    "RenameStmt": Walk._object_with_relation,
    "AlterObjectSchemaStmt": Walk._object_with_relation,
    "DropStmt": Walk._object_by_name,
    "CommentStmt": Walk._object_by_name,
    "SecLabelStmt": Walk._object_by_name,
    "GrantStmt": Walk._grant,
    "VacuumStmt": Walk._vacuum,
    "ClusterStmt": Walk._cluster,
    "ReindexStmt": Walk._reindex,
    "CreatePublicationStmt": Walk._publication,
    "AlterPublicationStmt": Walk._publication,
    "CreateFunctionStmt": Walk._function,
}


def _short(objtype: Any) -> str:
    return str(objtype or "").removeprefix("OBJECT_")


def explain_runs(options: Any) -> bool:
    """Return whether EXPLAIN's options say ANALYZE: the last of repeated ones holds, as in the server."""
    runs = False
    for option in (o.get("DefElem", {}) for o in options):
        if option.get("defname") == "analyze":
            argument = option.get("arg")
            runs = argument is None or _is_true(argument)
    return runs


def _is_true(argument: Fields) -> bool:
    # As defGetBoolean.
    if "Integer" in argument:
        return bool(argument["Integer"].get("ival", 0))
    if "Boolean" in argument:
        return bool(argument["Boolean"].get("boolval", False))
    return str(argument.get("String", {}).get("sval", "")).lower() not in ("false", "off")
