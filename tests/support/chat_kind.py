"""A model kind that answers the operations of the compat APIs as the request says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import operations
from appliance.runners.echo.runner import EchoRunner


class TalkingRunner(EchoRunner):
    """Outputs the ``words`` of a request, ``delay`` seconds apart, and fails with ``error`` if given."""

    async def run(self, job: Job) -> AsyncGenerator[Log | Output | Metric]:
        """See ``Runner``."""
        if job.operation is None:
            async for event in super().run(job):
                yield event
            return
        if job.operation == operations.RESPONSES and "say" in job.input:
            async for output in self._say(job):
                yield output
            return
        body = job.input
        words, error = body.get("words", []), body.get("error")
        yield Metric("input_token_count", len(body.get("messages", ())))
        if body.get("stream"):
            for word in words:
                yield Output([{"type": "word", "word": word}])
                await asyncio.sleep(body.get("delay", 0))
        else:
            await asyncio.sleep(body.get("delay", 0))
        if error is not None:
            if not body.get("stream") or not words:
                yield Output([{"error": error}], append=False)
            raise PredictionFailed(error["message"])
        if not body.get("stream"):
            answer: dict[str, Any] = {"words": words, "operation": job.operation, "asked": body}
            yield Output([answer], append=False)

    async def _say(self, job: Job) -> AsyncGenerator[Output]:
        """Output a response, or the events of one, that says ``say``, each word ``delay`` seconds later."""
        said = job.input["say"]
        content = [{"type": "output_text", "text": said, "annotations": []}]
        message = {"type": "message", "role": "assistant", "id": f"msg_{job.id}", "content": content}
        response = {"id": f"resp_{job.id}", "object": "response", "output": [], "status": "in_progress"}
        done = {**response, "output": [message], "status": "completed"}
        if not job.input.get("stream"):
            await asyncio.sleep(job.input.get("delay", 0))
            yield Output([done], append=False)
            return
        yield Output([{"type": "response.created", "sequence_number": 0, "response": response}])
        for number, word in enumerate(said.split(), 1):
            await asyncio.sleep(job.input.get("delay", 0))
            yield Output([{"type": "response.output_text.delta", "sequence_number": number, "delta": word}])
        number = len(said.split()) + 1
        yield Output([{"type": "response.completed", "sequence_number": number, "response": done}])
