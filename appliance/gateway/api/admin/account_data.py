"""Routes that count and erase what is stored of an account. The command `appliance erase` uses them."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.erasure import AccountData
from appliance.domain.errors import Conflict
from appliance.domain.token import Scope
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.services import services_of
from appliance.protocols.account_types import AccountDataResponse


async def get_account_data(request: Request) -> Response:
    """``GET /admin/accounts/{account}/data``: how much is stored; all zero for an unknown account."""
    await requests.caller(request, Scope.ADMIN)
    found = await services_of(request).store.erasures.data_of(request.path_params["account"])
    return responses.json(_response(request, found))


async def erase_account_data(request: Request) -> Response:
    """``DELETE /admin/accounts/{account}/data``: revoke its tokens, cancel its work, erase its data.

    The response comes when all is erased. If the client disconnects, the erasure goes on.
    """
    services = services_of(request)
    caller = await requests.caller(request, Scope.ADMIN)
    account = request.path_params["account"]
    if account == services.config.server.account:
        raise Conflict(
            f'The account "{account}" is server.account in models.yaml, whose tokens operate the appliance: '
            "its data cannot be erased. Delete its predictions one by one, or set retention in models.yaml."
        )
    if account == caller.owner:
        raise Conflict(
            f'The account "{account}" is that of the token of this request: use a token of another account.'
        )
    erased = await services.erasures.erase(account, audit.event(request, object=account))
    return responses.json(_response(request, erased))


def _response(request: Request, data: AccountData) -> AccountDataResponse:
    account, erasures = request.path_params["account"], services_of(request).erasures
    return AccountDataResponse(
        account=account,
        erasing=erasures.is_erasing(account),
        kept_models=erasures.owned_models(account),
        **msgspec.structs.asdict(data),
    )


_DATA: Final = "/admin/accounts/{account}/data"
ROUTES: Final = (
    Route(_DATA, get_account_data, methods=["GET"]),
    Route(_DATA, erase_account_data, methods=["DELETE"]),
)
