"""Acts of commands, for the audit log."""

from __future__ import annotations

import os
import pwd
from typing import Any

from appliance.domain.audit import AuditEvent


def command(action: str, object: str = "", after: Any = None) -> AuditEvent:
    """Return the event of a command that the user of this process runs."""
    return AuditEvent(action=action, object=object, owner=f"unix:{_user()}", after=after)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container
        return str(os.getuid())
