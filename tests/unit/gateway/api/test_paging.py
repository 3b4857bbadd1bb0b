"""Lists of predictions, as strict clients read them."""

from __future__ import annotations

from tests.support.api_client import Api


async def test_lists_have_the_output_of_what_is_not_over_as_null(api: Api) -> None:
    body = {"input": {"text": "a b c", "delay": 30}}
    record = (await api.post("/v1/models/test/stream/predictions", json=body)).json()
    ended = await api.ended(await api.create(text="x"))
    listed = {one["id"]: one for one in (await api.get("/v1/predictions")).json()["results"]}
    assert listed[record["id"]]["output"] is None
    assert listed[ended["id"]]["output"] == "x"
    # A client that polls one takes null for an answer.
    assert "output" not in (await api.get(f"/v1/predictions/{record['id']}")).json()
    await api.post(f"/v1/predictions/{record['id']}/cancel")
