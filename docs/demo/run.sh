#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The demo: an agent runs a backfill on a table; agentwatch says afterwards what it did.
#
# Everything lives under one temporary root and is ended and removed at the end, also after a failure: PostgreSQL on
# a folder and port of its own, the probes, the recorder, the agent's user. Run it with 'sudo make demo'.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "$here/../.." && pwd)/.venv/bin
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
umask 022

agentwatch() {
	"$venv/agentwatch" "$@"
}

fail() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "needs root, to load probes and to make a user: sudo make demo"
[ -x "$venv/agentwatch" ] || fail "no .venv/bin/agentwatch in the checkout: make setup"

heading() {
	printf '\n\033[1m%s\033[0m\n' "$*"
}
[ -t 1 ] || heading() {
	printf '\n== %s\n' "$*"
}

# Show a command as typed, then run it.
run() {
	printf '$ %s\n' "$*"
	"$@"
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $deadline ] || return 1
		sleep 0.1
	done
}

gone() {
	! kill -0 "$1"
}

# End a child of this script by its process id, by force after half a minute.
end() {
	local signal=$1 pid=$2
	[ -n "$pid" ] && kill -"$signal" "$pid" 2>/dev/null || return 0
	wait_for 30 gone "$pid" || kill -KILL "$pid"
	wait "$pid" 2>/dev/null || true
}

root=$(mktemp -d /tmp/agentwatch-demo.XXXXXX)
name=${root##*/}
name=${name/./-}
user=
server_pid=
recorder_pid=
probes_loaded=

clean_up() {
	local status=$?
	trap - EXIT INT TERM
	set +e
	if [ $status != 0 ] && [ -s "$root/recorder.err" ]; then
		printf '\nthe recorder said:\n' >&2
		tail -n 20 "$root/recorder.err" >&2
	fi
	end TERM "$recorder_pid"
	[ -z "$probes_loaded" ] || agentwatch probes unload >/dev/null
	end INT "$server_pid"
	[ -z "$user" ] || userdel "$user" 2>/dev/null
	if [ -n "${cgroup:-}" ] && [ -d "$cgroup" ]; then
		find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
	fi
	rm -rf "$root"
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

chmod 755 "$root"
cd "$root"

heading "A PostgreSQL server with a table orders"
bin=$(find /usr/lib/postgresql -path '*/bin/postgres' -printf '%h\n' | sort -V | tail -n 1)
[ -n "$bin" ] || fail "no PostgreSQL server under /usr/lib/postgresql: make setup"
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
install -d -o postgres -g postgres "$root/postgres"
as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups)
"${as_postgres[@]}" "$bin/initdb" -D "$root/postgres/data" -U postgres -A trust -E UTF8 --locale=C -N >/dev/null
"${as_postgres[@]}" "$bin/postgres" -D "$root/postgres/data" -p "$port" -c listen_addresses=127.0.0.1 \
	-c unix_socket_directories="$root/postgres" -c fsync=off >"$root/postgres/output" 2>&1 &
server_pid=$!
export PGHOST=127.0.0.1 PGPORT=$port PGSSLMODE=disable PGGSSENCMODE=disable
wait_for 60 psql -U postgres -XAtc 'SELECT 1' || fail "PostgreSQL did not start: $(cat "$root/postgres/output")"
psql -U postgres -qX -v ON_ERROR_STOP=1 <<'SQL'
CREATE ROLE backfill LOGIN;
CREATE DATABASE shop OWNER backfill;
\connect shop backfill
CREATE TABLE orders (
    id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    country text NOT NULL,
    total_cents int NOT NULL,
    region text CHECK (region IN ('AMER', 'APAC', 'EMEA'))
);
INSERT INTO orders (country, total_cents)
SELECT (ARRAY['AT', 'DE', 'JP', 'US', 'BR'])[CASE WHEN n > 200 THEN 1 + n % 5 ELSE 1 + n % 4 END], 100 * n
FROM generate_series(1, 400) AS n;
SQL
echo "on port $port: $(psql -U backfill -d shop -XAtc 'SELECT count(*) FROM orders') orders without a region"

heading "agentwatch: configuration, probes, recorder"
export AGENTWATCH_CONFIG=$root/agentwatch.toml
cgroup=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)/$name.slice
cat >"$AGENTWATCH_CONFIG" <<TOML
log_dir = "$root/log"
state_dir = "$root/state"
run_dir = "$root/run"
pin_dir = "/sys/fs/bpf/$name"
watch = "$name.slice"

[[agent]]
name = "agent-backfill"
cgroup = "$name.slice/agent-backfill*"
TOML
probes_loaded=1
run agentwatch probes load
echo "$ agentwatch record &"
"$venv/agentwatch" record >"$root/recorder.out" 2>"$root/recorder.err" </dev/null &
recorder_pid=$!
recorder_ready() { grep -q ready "$root/recorder.out" || ! kill -0 $recorder_pid; }
wait_for 60 recorder_ready && kill -0 $recorder_pid 2>/dev/null || fail "the recorder did not become ready"
cat "$root/recorder.out"

heading "The agent runs its backfill, as an ordinary user"
user=agentwatch-demo-$$
useradd --system --no-create-home --home-dir / --shell /bin/sh "$user"
# The agent's own psycopg: the checkout may lie where that user cannot go.
install -d "$root/agent/lib"
packages=$("$venv/python" -c 'import psycopg, pathlib; print(pathlib.Path(psycopg.__file__).parent.parent)')
cp -r "$packages"/psycopg "$packages"/psycopg_binary* "$packages"/typing_extensions.py "$root/agent/lib/"
cp "$here/backfill.py" "$here/attempts.sh" "$root/agent/"
export PGUSER=backfill PGDATABASE=shop PGSOCKETDIR=$root/postgres
export PYTHONPATH=$root/agent/lib PYTHONDONTWRITEBYTECODE=1
cd "$root/agent"
run agentwatch run --agent agent-backfill --user "$user" -- /usr/bin/python3 backfill.py
unset PYTHONPATH

session_of() {
	python3 -c 'import json, sys
rows = [json.loads(line) for line in sys.stdin]
print(next((r["session"] for r in rows if r["ended"]), ""))'
}
session=
recorded() {
	agentwatch index && session=$(agentwatch sessions --table orders --json | session_of) && [ -n "$session" ]
}
wait_for 60 recorded || fail "the agent's session did not reach the index: $(agentwatch status)"

heading "Which sessions touched orders?"
run agentwatch sessions --table orders

heading "What did that one do? Every statement, verbatim and in order"
run agentwatch replay "$session" --no-wait

heading "The agent's user tries to undo the record"
attempts=0
run agentwatch run --agent agent-backfill --user "$user" -- \
	bash attempts.sh "$root/log" "/sys/fs/bpf/$name" "$recorder_pid" || attempts=$?
[ $attempts = 0 ] || fail "$attempts attempts were not refused"
kill -0 $recorder_pid || fail "the recorder is gone"

heading "The log is whole, and the recorder still runs"
run agentwatch verify
run agentwatch status

heading "An auditor elsewhere gets the session, the host's identity, and one file that checks it"
agentwatch checkpoint --identity >"$root/identity"
agentwatch checkpoint >"$root/checkpoint"
run agentwatch evidence "$session" -o "$root/case.tlog.zip"
cp "$here/../../agentwatch/standalone/agentwatch_verify.py" "$root/"
echo "$ python3 agentwatch_verify.py --identity \"\$(cat identity)\" case.tlog.zip"
"$venv/python" -I "$root/agentwatch_verify.py" --identity "$(cat "$root/identity")" "$root/case.tlog.zip"

heading "Somebody with root's powers changes one word in a copy of the log"
cp -r "$root/log" "$root/copy"
run sed -i 's/UPDATE orders/UPDATE ordure/' "$root/copy/00000000000000000000.segment"
run agentwatch verify --log "$root/copy" --against "$root/checkpoint" && fail "the change was not noticed"
true
