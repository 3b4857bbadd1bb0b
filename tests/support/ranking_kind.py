"""A model kind that ranks documents by the words that they share with a query."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.echo.runner import EchoRunner


class RankingRunner(EchoRunner):
    """Outputs what the task `reranking` of kind `transformers` does; the query "fail" fails."""

    async def run(self, job: Job) -> AsyncGenerator[Log | Output | Metric]:
        query, documents = job.input["query"], job.input["documents"]
        if query == "fail":
            raise PredictionFailed("the documents cannot be compared")
        words = [document.split()[: job.input.get("max_tokens")] for document in documents]
        scores = [len(set(query.split()) & set(each)) / len(query.split()) for each in words]
        order = sorted(range(len(scores)), key=lambda number: -scores[number])[: job.input.get("top_k")]
        yield Metric("input_token_count", sum(map(len, words)))
        yield Output(
            [[{"index": each, "score": scores[each], "document": documents[each]} for each in order]],
            append=False,
        )
