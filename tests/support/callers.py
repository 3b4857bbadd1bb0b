"""The callers of the access matrices of the API and of the UI."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.domain import token
from appliance.domain.access import Group, Policy, Right
from appliance.domain.token import Scope, Token
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench


async def add_callers(
    api: Api, bench: Bench, *, expired: dict[str, Any], revoked: dict[str, Any]
) -> dict[str, str]:
    """Create a token for each kind of caller, and groups; return the secrets of the tokens.

    ``expired`` and ``revoked`` are fields of the tokens that have ended, or end during the test.
    """
    tokens: dict[str, dict[str, Any]] = {
        "expired": {"scope": Scope.ADMIN, **expired},
        "revoked": {"scope": Scope.ADMIN, **revoked},
        "elsewhere": {"scope": Scope.ADMIN, "networks": ("198.51.100.0/24",)},
        "reader": {"scope": Scope.READ},
        "runner": {"scope": Scope.RUN},
        "limited": {"scope": Scope.RUN, "models": ("another/*",)},
        "outsider": {"scope": Scope.RUN, "owner": "outsider"},
        "other": {"scope": Scope.RUN, "owner": "other"},
    }
    added = []
    for name, fields in tokens.items():
        common = {"id": name, "name": name, "owner": "me", "digest": token.digest(f"{name} secret")}
        added.append(bench.store.add_token(Token(**{**common, "created_at": 0, **fields})))
    await asyncio.gather(*added)  # in one commit
    everything = frozenset(Right)
    all_models = Group("all", frozenset({"other"}), ("*",), everything)
    others = Group("others", frozenset({"outsider"}), ("another/*",), everything)
    api.services.auth.apply(Policy([all_models, others], None, "me"))
    return {"admin": SECRET, **{name: f"{name} secret" for name in tokens}}
