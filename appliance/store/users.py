"""The tables of people who sign in to the UI, and of their sessions."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from appliance.domain.audit import AuditEvent
from appliance.domain.token import Scope
from appliance.domain.user import Session, User
from appliance.store import audit_chain
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES, SESSION_COLUMNS, USER_COLUMNS

#: Seconds for which a session is kept after it has expired, because the audit log refers to it.
_KEPT: Final = 30 * 86400.0
#: Returns the record of a sign-in of this user.
SignInEvent = Callable[[User], AuditEvent]


class UserTable:
    """Users and sessions, available as ``Store.users``. Only hashes of passwords and secrets are stored."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    # -- users

    async def find(self, name: str) -> User | None:
        row = await self._connections.row("user", {"name": name})
        return None if row is None else _user(row)

    async def all(self) -> list[User]:
        return await self._connections.read(
            lambda connection: [_user(row) for row in connection.execute(QUERIES["users"])]
        )

    def add(self, user: User, event: AuditEvent) -> asyncio.Future[bool]:
        """Add a user; return False, and change nothing, if the account has one already."""

        def action(connection: sqlite3.Connection) -> bool:
            if connection.execute(QUERIES["user"], {"name": user.name}).fetchone() is not None:
                return False
            connection.execute(QUERIES["insert_user"], _user_columns(user))
            audit_chain.append(connection, event)
            return True

        return self._connections.with_head(self._connections.write(action))

    def set_password(self, name: str, password: str, now: float, event: AuditEvent) -> asyncio.Future[bool]:
        """Replace the hash of a password, and end all sessions of the user.

        Return False, and change nothing, if there is no such user, or the user signs in at a provider.
        """

        def action(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(QUERIES["set_password"], {"name": name, "password": password})
            if not changed.rowcount:
                return False
            connection.execute(QUERIES["end_sessions"], {"user": name, "now": now})
            audit_chain.append(connection, event)
            return True

        return self._connections.with_head(self._connections.write(action))

    def rehash(self, name: str, old: str, new: str) -> asyncio.Future[bool]:
        """Replace the hash of a password by another hash of the same password.

        Return False, and change nothing, if the stored hash is no longer ``old``: the password was changed.
        """
        names = {"name": name, "old": old, "new": new}

        def action(connection: sqlite3.Connection) -> bool:
            return connection.execute(QUERIES["replace_password_hash"], names).rowcount == 1

        return self._connections.write(action)

    def remove(self, name: str, event: AuditEvent) -> asyncio.Future[bool]:
        """Remove a user and all sessions of the user; return False if there is no such user."""

        def action(connection: sqlite3.Connection) -> bool:
            if not connection.execute(QUERIES["delete_user"], {"name": name}).rowcount:
                return False
            connection.execute(QUERIES["delete_sessions_of_user"], {"user": name})
            audit_chain.append(connection, event)
            return True

        return self._connections.with_head(self._connections.write(action))

    # -- sessions

    def sign_in(self, user: User, session: Session, event: SignInEvent) -> asyncio.Future[User | None]:
        """Store a session, and the claims of the user; add the user if the provider names a new person.

        A person of a provider keeps the account of the first sign-in. Returns the stored user, or None if
        the account belongs to another person, or its data is being erased, or the password was changed
        meanwhile; then nothing is stored.
        """

        def action(connection: sqlite3.Connection) -> User | None:
            known = _known(connection, user)
            if _is_erased(connection, user if known is None else known):
                return None
            if known is None and user.method == "provider":
                connection.execute(QUERIES["insert_user"], _user_columns(user))
                known = user
            credentials = (user.issuer, user.subject, user.password)
            if known is None or (known.issuer, known.subject, known.password) != credentials:
                return None
            changes = {"groups_claim": json.dumps(user.groups_claim), "last_sign_in_at": session.created_at}
            connection.execute(QUERIES["record_sign_in"], {"name": known.name, **changes})
            connection.execute(QUERIES["delete_old_sessions"], {"before": session.created_at - _KEPT})
            columns = {name: getattr(session, name) for name in SESSION_COLUMNS} | {"user": known.name}
            connection.execute(QUERIES["insert_session"], columns)
            audit_chain.append(connection, event(known))
            return known

        return self._connections.with_head(self._connections.write(action))

    async def is_erased(self, user: User) -> bool:
        """Return whether the data of the account to which this person would sign in is being erased."""

        def action(connection: sqlite3.Connection) -> bool:
            return _is_erased(connection, _known(connection, user) or user)

        return await self._connections.read(action)

    async def find_session(self, digest: str) -> tuple[Session, User] | None:
        """Return the session whose secret has this digest, also if it has ended, and its user."""
        row = await self._connections.row("session_by_digest", {"digest": digest})
        if row is None:
            return None
        session = _session(row)
        user = await self.find(session.user)
        return None if user is None else (session, user)

    async def sessions(self, user: str | None, now: float) -> list[Session]:
        """Return the sessions of a user that have not ended, newest first; None: of all users."""
        query = QUERIES["active_sessions" if user is None else "active_sessions_of_user"]
        parameters = {"now": now} if user is None else {"now": now, "user": user}
        return await self._connections.read(
            lambda connection: [_session(row) for row in connection.execute(query, parameters)]
        )

    def end_session(
        self, id: str, user: str | None, now: float, event: AuditEvent
    ) -> asyncio.Future[Session | None]:
        """End a session of a user, or of any user; None if there is no such session, or it has ended."""

        def action(connection: sqlite3.Connection) -> Session | None:
            found = {"id": id, "user": user, "now": now}
            if not connection.execute(QUERIES["end_session"], found).rowcount:
                return None
            audit_chain.append(connection, event)
            return _session(connection.execute(QUERIES["session_by_id"], {"id": id}).fetchone())

        return self._connections.with_head(self._connections.write(action))

    def record_session_use(self, id: str, at: float, address: str) -> asyncio.Future[None]:
        """Store when and from which IP address a session was used last."""
        use = {"id": id, "last_used_at": at, "last_used_from": address}
        return self._connections.change("record_session_use", use)


def _known(connection: sqlite3.Connection, user: User) -> User | None:
    """Return the stored user: by the provider's id of the person, else by the account."""
    if user.subject is not None:
        subject = {"issuer": user.issuer, "subject": user.subject}
        row = connection.execute(QUERIES["user_by_subject"], subject).fetchone()
        if row is not None:
            return _user(row)
    row = connection.execute(QUERIES["user"], {"name": user.name}).fetchone()
    return None if row is None else _user(row)


def _is_erased(connection: sqlite3.Connection, user: User) -> bool:
    return connection.execute(QUERIES["erasures"], {"account": user.name}).fetchone() is not None


def _user(row: tuple[Any, ...]) -> User:
    columns = dict(zip(USER_COLUMNS, row, strict=True))
    groups = tuple(json.loads(columns["groups_claim"]))
    return User(**columns | {"scope": Scope(columns["scope"]), "groups_claim": groups})


def _user_columns(user: User) -> dict[str, Any]:
    columns = {name: getattr(user, name) for name in USER_COLUMNS}
    return columns | {"scope": user.scope.value, "groups_claim": json.dumps(user.groups_claim)}


def _session(row: tuple[Any, ...]) -> Session:
    return Session(**dict(zip(SESSION_COLUMNS, row, strict=True)))
