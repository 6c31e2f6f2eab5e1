"""Which session an event belongs to: cgroup ids and paths in, live sessions out.

Fed by the kernel's cgroup events, which name every cgroup when it is made, so that one which lived for a
millisecond is known. A session is one life of one cgroup that an agent's pattern matches; what lies below it
belongs to it. A watched cgroup that no pattern matches is a session of the agent ``unidentified``: nothing that
was seen is without an owner. Registrations (``agentwatch run``) are read once, when the session begins.
Plain values, survives ``pickle``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentwatch.config import CANARY_AGENT
from agentwatch.identity import agents, cgroups, sessions

if TYPE_CHECKING:
    from pathlib import Path

    from agentwatch.config import Config

UNIDENTIFIED = "unidentified"
"""The agent of watched cgroups that the configuration does not name."""
MAX_CGROUPS = 65536
"""Cgroup ids remembered; above it the oldest is forgotten and looked up in the file system if it is met again."""

MAX_RECENT = 1024
"""Ended sessions that late events are still attributed to."""


@dataclass(slots=True)
class Session:
    """One life of one cgroup."""

    id: str
    agent: str
    cgroup: str
    cgroup_id: int
    user: str | None
    uid: int | None
    login_uid: int | None
    argv: list[str] | None
    origin: str
    started: int
    root_pid: int | None = None
    """The first process that was seen in it: its exit status is the session's."""
    status: int | None = None
    members: set[int] = field(default_factory=set)
    """Its living processes, wherever they moved to."""
    empty: bool = False
    """Whether its cgroup has no process (the members may have been moved out)."""
    ended: bool = False
    suspect: bool = False
    """Events were lost while it lived, the last ones perhaps among them: the file system is asked."""


class Tracker:
    """The cgroups and sessions of this boot."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._paths: dict[int, str] = {}
        self._ids: dict[str, int] = {}
        self._sessions: dict[int, Session] = {}
        """By the id of the session's own cgroup."""
        self._owner: dict[int, Session] = {}
        """By the id of any cgroup in it: the one lookup of the common case."""
        self._recent: dict[int, Session] = {}
        """Sessions that are over and whose cgroup is gone: their last packets are still theirs."""

    def learn(self, cgroup_id: int, path: str) -> None:
        """Take note of a cgroup's path below cgroup_root."""
        path = path.strip("/")
        if self._paths.get(cgroup_id) == path:
            return
        if len(self._paths) >= MAX_CGROUPS:
            oldest = next(iter(self._paths))
            self._ids.pop(self._paths.pop(oldest), None)
            self._owner.pop(oldest, None)
        self._paths[cgroup_id] = path
        self._ids[path] = cgroup_id

    def path(self, cgroup_id: int) -> str | None:
        """Return a cgroup's path below cgroup_root; an id that no event explained is looked up."""
        known = self._paths.get(cgroup_id)
        if known is None and (known := cgroups.path_of(cgroup_id, self.config.cgroup_root)) is not None:
            self.learn(cgroup_id, known)
        return known

    def session(self, cgroup_id: int) -> Session | None:
        """Return the session that a cgroup belongs to, None if it has not begun or cannot be told."""
        return self._owner.get(cgroup_id)

    def begin(self, cgroup_id: int, boottime: int) -> tuple[Session, bool] | None:
        """Return the session of a cgroup in which something happened, and whether it began just now."""
        known = self._owner.get(cgroup_id)
        if known is not None and not known.ended:
            return known, False
        path = self.path(cgroup_id)
        if path is None:
            return None
        agent, session_path = self._agent_of(path)
        session_id = self._ids.get(session_path) or self._id_of(session_path) or cgroup_id
        present = self._sessions.get(session_id)
        if present is not None and not present.ended:
            self._owner[cgroup_id] = present
            return present, False
        session = self._make(agent, session_path, session_id, boottime, again=present is not None)
        self._sessions[session_id] = self._owner[cgroup_id] = self._owner[session_id] = session
        return session, True

    def live(self) -> list[Session]:
        """Return the sessions that have not ended."""
        return [session for session in self._sessions.values() if not session.ended]

    def populated(self, cgroup_id: int, *, populated: bool) -> Session | None:
        """Take note that a cgroup has processes or none; return the session whose own cgroup it is."""
        session = self._sessions.get(cgroup_id)
        if session is not None:
            session.empty = not populated
        return session

    def ask_after_loss(self) -> None:
        """Look at the cgroups of sessions whose end may be among lost events: gone or empty is over."""
        for session in self.live():
            if session.suspect and not session.empty:
                session.empty = not cgroups.populated(self.config.cgroup_root / session.cgroup)

    @staticmethod
    def end_if_over(session: Session | None) -> bool:
        """End a session whose cgroup is empty and whose processes have all ended; whether that was now."""
        if session is None or session.ended or session.members or not session.empty:
            return False
        session.ended = True
        return True

    def tidy(self) -> None:
        """Remove the cgroups of ended runs that their launcher could not, and forget sessions whose cgroup is gone.

        A command's background processes may outlive the launcher, which leaves the cgroup to us.
        """
        for cgroup_id, session in list(self._sessions.items()):
            if not session.ended:
                continue
            directory = self.config.cgroup_root / session.cgroup
            if session.origin == "run":
                with contextlib.suppress(OSError):
                    directory.rmdir()
            if not directory.exists():
                sessions.remove(self.config.run_dir, cgroup_id)
                del self._sessions[cgroup_id]
                self._recent[cgroup_id] = session
                if len(self._recent) > MAX_RECENT:
                    self._drop(self._recent.pop(next(iter(self._recent))))

    def _drop(self, session: Session) -> None:
        for member in [c for c, s in self._owner.items() if s is session]:
            del self._owner[member]

    def _agent_of(self, path: str) -> tuple[str, str]:
        canary = self.config.canary_cgroup
        if path == canary or path.startswith(f"{canary}/"):
            return CANARY_AGENT, canary  # also where a pattern of the configuration matches everything
        found = agents.match(self.config.agents, path)
        if found is not None:
            return found[0].name, found[1]
        below = path.removeprefix(self.config.watch).strip("/")
        first = below.split("/", 1)[0]
        return UNIDENTIFIED, f"{self.config.watch}/{first}" if first else self.config.watch

    def _id_of(self, path: str) -> int | None:
        directory: Path = self.config.cgroup_root / path
        try:
            found = cgroups.cgroup_id(directory)
        except OSError:
            return None
        self.learn(found, path)
        return found

    def _make(self, agent: str, path: str, cgroup_id: int, boottime: int, *, again: bool) -> Session:
        registration = sessions.Registration(
            session=sessions.new_session_id(),
            agent=agent,
            cgroup=path,
            cgroup_id=cgroup_id,
            user=None,
            uid=None,
            login_uid=None,
            argv=None,
            origin="cgroup",
            boottime=boottime,
        )
        if again:  # the same cgroup is used a second time: what is registered is the session that ended
            sessions.write(self.config.run_dir, registration)
        else:
            registration = sessions.claim(self.config.run_dir, registration)
        return Session(
            id=registration.session,
            agent=registration.agent,
            cgroup=registration.cgroup,
            cgroup_id=cgroup_id,
            user=registration.user,
            uid=registration.uid,
            login_uid=registration.login_uid,
            argv=registration.argv,
            origin=registration.origin,
            started=min(boottime, registration.boottime),
        )
