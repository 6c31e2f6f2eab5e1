"""The words for the kind of a PostgreSQL statement, from its node in libpg_query's tree.

They are the server's own command tags (src/include/tcop/cmdtaglist.h) without counts, but for the TRUNCATE TABLE,
LOCK TABLE, DECLARE CURSOR and CLOSE CURSOR of the tags, which are called by the word that begins the statement.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_WORDS = {
    "SelectStmt": "SELECT",
    "InsertStmt": "INSERT",
    "UpdateStmt": "UPDATE",
    "DeleteStmt": "DELETE",
    "MergeStmt": "MERGE",
    "CopyStmt": "COPY",
    "TruncateStmt": "TRUNCATE",
    "ExplainStmt": "EXPLAIN",
    "PrepareStmt": "PREPARE",
    "ExecuteStmt": "EXECUTE",
    "DeallocateStmt": "DEALLOCATE",
    "DeclareCursorStmt": "DECLARE",
    "ClosePortalStmt": "CLOSE",
    "VariableShowStmt": "SHOW",
    "ConstraintsSetStmt": "SET CONSTRAINTS",
    "LockStmt": "LOCK",
    "ClusterStmt": "CLUSTER",
    "ReindexStmt": "REINDEX",
    "CheckPointStmt": "CHECKPOINT",
    "ListenStmt": "LISTEN",
    "NotifyStmt": "NOTIFY",
    "UnlistenStmt": "UNLISTEN",
    "LoadStmt": "LOAD",
    "DoStmt": "DO",
    "CallStmt": "CALL",
    "CommentStmt": "COMMENT",
    "SecLabelStmt": "SECURITY LABEL",
    "CreateStmt": "CREATE TABLE",
    "CreateForeignTableStmt": "CREATE FOREIGN TABLE",
    "ViewStmt": "CREATE VIEW",
    "IndexStmt": "CREATE INDEX",
    "RuleStmt": "CREATE RULE",
    "CreateTrigStmt": "CREATE TRIGGER",
    "CreateSeqStmt": "CREATE SEQUENCE",
    "CompositeTypeStmt": "CREATE TYPE",
    "CreateEnumStmt": "CREATE TYPE",
    "CreateRangeStmt": "CREATE TYPE",
    "CreatePLangStmt": "CREATE LANGUAGE",
    "CreateStatsStmt": "CREATE STATISTICS",
    "CreateFdwStmt": "CREATE FOREIGN DATA WRAPPER",
    "CreateAmStmt": "CREATE ACCESS METHOD",
    "CreateEventTrigStmt": "CREATE EVENT TRIGGER",
    "CreateOpClassStmt": "CREATE OPERATOR CLASS",
    "CreateOpFamilyStmt": "CREATE OPERATOR FAMILY",
    "CreatedbStmt": "CREATE DATABASE",
    "CreateTableSpaceStmt": "CREATE TABLESPACE",
    "CreateForeignServerStmt": "CREATE SERVER",
    "CreateRoleStmt": "CREATE ROLE",
    "DropdbStmt": "DROP DATABASE",
    "DropTableSpaceStmt": "DROP TABLESPACE",
    "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
    "AlterSeqStmt": "ALTER SEQUENCE",
    "AlterEnumStmt": "ALTER TYPE",
    "AlterFdwStmt": "ALTER FOREIGN DATA WRAPPER",
    "AlterOpFamilyStmt": "ALTER OPERATOR FAMILY",
    "AlterEventTrigStmt": "ALTER EVENT TRIGGER",
    "AlterRoleSetStmt": "ALTER ROLE",
    "AlterDatabaseSetStmt": "ALTER DATABASE",
    "AlterDatabaseRefreshCollStmt": "ALTER DATABASE",
    "AlterExtensionContentsStmt": "ALTER EXTENSION",
    "AlterForeignServerStmt": "ALTER SERVER",
    "AlterTableMoveAllStmt": "ALTER TABLE",
    "AlterTableSpaceOptionsStmt": "ALTER TABLESPACE",
    "AlterStatsStmt": "ALTER STATISTICS",
    "AlterTSDictionaryStmt": "ALTER TEXT SEARCH DICTIONARY",
    "AlterTSConfigurationStmt": "ALTER TEXT SEARCH CONFIGURATION",
}
_TRANSACTION = {
    "BEGIN": "BEGIN",
    "START": "START TRANSACTION",
    "COMMIT": "COMMIT",
    "ROLLBACK": "ROLLBACK",
    "SAVEPOINT": "SAVEPOINT",
    "RELEASE": "RELEASE",
    "ROLLBACK_TO": "ROLLBACK",
    "PREPARE": "PREPARE TRANSACTION",
    "COMMIT_PREPARED": "COMMIT PREPARED",
    "ROLLBACK_PREPARED": "ROLLBACK PREPARED",
}
_OBJECTS = {
    "MATVIEW": "MATERIALIZED VIEW",
    "COLUMN": "TABLE",
    "TABCONSTRAINT": "TABLE",
    "DOMCONSTRAINT": "DOMAIN",
    "ATTRIBUTE": "TYPE",
    "OPCLASS": "OPERATOR CLASS",
    "OPFAMILY": "OPERATOR FAMILY",
    "FDW": "FOREIGN DATA WRAPPER",
    "FOREIGN_SERVER": "SERVER",
    "STATISTIC_EXT": "STATISTICS",
    "TSPARSER": "TEXT SEARCH PARSER",
    "TSDICTIONARY": "TEXT SEARCH DICTIONARY",
    "TSTEMPLATE": "TEXT SEARCH TEMPLATE",
    "TSCONFIGURATION": "TEXT SEARCH CONFIGURATION",
}
_BY_OBJECT = {
    "DropStmt": ("DROP", "removeType"),
    "AlterTableStmt": ("ALTER", "objtype"),
    "RenameStmt": ("ALTER", "renameType"),
    "AlterObjectSchemaStmt": ("ALTER", "objectType"),
    "AlterObjectDependsStmt": ("ALTER", "objectType"),
    "AlterOwnerStmt": ("ALTER", "objectType"),
    "AlterFunctionStmt": ("ALTER", "objtype"),
    "DefineStmt": ("CREATE", "kind"),
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def operation(kind: str, fields: dict[str, Any]) -> str:
    """Return the words for a statement's node."""
    words = _WORDS.get(kind)
    if words is not None:
        return words
    if kind in _BY_OBJECT:
        verb, field = _BY_OBJECT[kind]
        return f"{verb} {_object(fields.get(field, ''))}"
    special = _SPECIAL.get(kind)
    if special is not None:
        return special(fields)
    # The rest is named by its own node: CreatePolicyStmt, DropOwnedStmt, AlterSystemStmt ...
    return _CAMEL.sub(" ", kind.removesuffix("Stmt")).upper()


def _object(objtype: str) -> str:
    name = objtype.removeprefix("OBJECT_")
    return _OBJECTS.get(name, name.replace("_", " "))


def _create_as(fields: dict[str, Any]) -> str:
    if fields.get("is_select_into"):
        return "SELECT"
    return "CREATE MATERIALIZED VIEW" if fields.get("objtype") == "OBJECT_MATVIEW" else "CREATE TABLE AS"


def _grant(fields: dict[str, Any]) -> str:
    return "GRANT" if fields.get("is_grant") else "REVOKE"


_SPECIAL: dict[str, Callable[[dict[str, Any]], str]] = {
    "TransactionStmt": lambda f: _TRANSACTION.get(f.get("kind", "").removeprefix("TRANS_STMT_"), "BEGIN"),
    "VariableSetStmt": lambda f: "RESET" if "RESET" in f.get("kind", "") else "SET",
    "VacuumStmt": lambda f: "VACUUM" if f.get("is_vacuumcmd") else "ANALYZE",
    "FetchStmt": lambda f: "MOVE" if f.get("ismove") else "FETCH",
    "DiscardStmt": lambda f: f"DISCARD {f.get('target', '').removeprefix('DISCARD_')}".rstrip(),
    "CreateFunctionStmt": lambda f: "CREATE PROCEDURE" if f.get("is_procedure") else "CREATE FUNCTION",
    "CreateTableAsStmt": _create_as,
    "GrantStmt": _grant,
    "GrantRoleStmt": lambda f: f"{_grant(f)} ROLE",
}
