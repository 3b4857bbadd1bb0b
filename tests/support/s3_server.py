"""A server with the API of S3, moto's, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError

from appliance.gateway.files.bucket_mark import MARK
from tests.support.appliance_process import free_port, wait_for

BUCKET = "files"
PREFIX = "tests/one"
KEY, SECRET = "test-key", "test secret of the bucket"
#: Environment variables of an appliance that uses the server.
VARIABLES = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


class S3Server:
    """A process with one bucket; its content is in memory, and lost when the process stops."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        """Listen on an IP ``address`` of this machine."""
        self._address = address
        self.port = free_port()
        self.endpoint = f"http://{address}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The values of ``files.s3``; the keys are in ``VARIABLES``."""
        return {"url": f"s3://{BUCKET}/{PREFIX}", "endpoint": self.endpoint}

    def start(self) -> None:
        """Start the server and create the bucket."""
        program = Path(sys.executable).parent / "moto_server"
        self._process = subprocess.Popen(
            [program, "-H", self._address, "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._create, "the S3 server to answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Accept connections, but answer nothing, until ``resume``. The objects stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def object_paths(self) -> list[str]:
        """Return the keys of all objects, without the prefix, and without the id of the appliance."""
        found = self._client().list_objects_v2(Bucket=BUCKET).get("Contents", [])
        paths = [each["Key"].removeprefix(f"{PREFIX}/") for each in found]
        return [path for path in paths if path != MARK]

    def content(self, key: str) -> bytes:
        """Return the bytes of an object."""
        body: bytes = self._client().get_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}")["Body"].read()
        return body

    def _create(self) -> bool:
        try:
            self._client().create_bucket(Bucket=BUCKET)
        except BotoCoreError:
            return False
        return True

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=ClientConfig(retries={"max_attempts": 0}),
        )
