"""Forms with files have a limit as a whole, whichever API they are sent to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from appliance.config import FilesConfig
from appliance.domain.errors import FileQuotaExceeded
from appliance.gateway.api.multipart import FIELDS
from tests.support.api_client import Api
from tests.support.engine_bench import Bench

HEADERS = {"content-type": "multipart/form-data; boundary=xyz"}
ROUTES = ["/v1/files", "/openai/v1/images/edits", "/openai/v1/audio/transcriptions"]
LIMIT = 1_000_000  # files.max_upload of the bench
FIELD = b'--xyz\r\nContent-Disposition: form-data; name="f"\r\n\r\n%s\r\n'
FILE = b'--xyz\r\nContent-Disposition: form-data; name="content"; filename="x"\r\n\r\n%s\r\n'


class Sender:
    """Sends pieces, and counts the bytes that were taken of it."""

    def __init__(self, piece: bytes, times: int) -> None:
        self.taken = 0
        self._piece = piece
        self._times = times

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._times):
            self.taken += len(self._piece)
            yield self._piece


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("piece", "most", "status"),
    [
        pytest.param(FIELD % (b"x" * 60_000), FIELDS, 400, id="many fields below the limit of one"),
        pytest.param(FIELD % b"", FIELDS, 400, id="empty parts"),
        pytest.param(FILE % (b"x" * 60_000), LIMIT + FIELDS, 413, id="many files below the limit of one"),
    ],
)
async def test_a_form_is_not_read_beyond_its_limit(
    api: Api, bench: Bench, path: str, piece: bytes, most: int, status: int
) -> None:
    sender = Sender(piece, 20_000_000 // len(piece))
    reply = await api.post(path, content=sender, headers=HEADERS)
    if path == "/v1/files":  # further files are fields to it
        status = 400
    assert reply.status_code == status, reply.text
    assert sender.taken < most + 2 * len(piece)
    assert list((bench.folder / "files" / "uploads").iterdir()) == []


@pytest.mark.parametrize("path", ROUTES)
async def test_a_form_that_says_it_is_too_large_is_not_read_at_all(api: Api, path: str) -> None:
    sender = Sender(FIELD % b"x", 3)
    headers = HEADERS | {"content-length": str(LIMIT + FIELDS + 1)}
    reply = await api.post(path, content=sender, headers=headers)
    assert (reply.status_code, sender.taken) == (413, 0), reply.text


async def test_uploads_under_way_count_towards_the_quota(bench: Bench) -> None:
    bench.files.config = FilesConfig.model_validate({"quota": 4000, "max_upload": 3000})
    first = await bench.files.incoming(2500)
    with pytest.raises(FileQuotaExceeded, match=r"2,500 of 4,000 bytes \(files\.quota"):
        await bench.files.incoming(None)
    second = await bench.files.incoming(1500)
    first.discard()
    third = await bench.files.incoming(2500)
    await third.write(b"x" * 10)
    await bench.files.keep(third, owner="me", name="x", content_type="text/plain", metadata={})
    second.discard()
    (await bench.files.incoming(3000)).discard()  # 10 bytes are taken
