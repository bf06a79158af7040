"""The ranking route of Cohere (v1, v2) and Jina (v1)."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from ..schemas import CohereError, CohereRanking, CohereRerank
from ..service import Service
from .answers import answer, best_first, errors


def add_routes(app: FastAPI, service: Service) -> None:
    """Add it to an application."""

    async def ranked(body: CohereRerank, version: str) -> Response:
        documents = [document if isinstance(document, str) else document.text for document in body.documents]
        found = await service.engine.log_odds([(body.query, text) for text in documents], one_query=True)
        results: list[dict[str, Any]] = [
            {"index": place, "relevance_score": float(found.probability[place])}
            for place in best_first(found.log_odds, body.top_n)
        ]
        if body.return_documents:
            results = [result | {"document": {"text": documents[result["index"]]}} for result in results]
        return answer(
            {
                "id": str(uuid.uuid4()),
                "model": service.settings.name,
                "object": "list",
                "results": results,
                "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
                "meta": {"api_version": {"version": version}},
            }
        )

    options: dict[str, Any] = {
        "tags": ["Cohere, Jina"],
        "response_model": CohereRanking,
        "response_model_exclude_none": True,
        "responses": errors(CohereError),
    }

    @app.post("/v1/rerank", **options)
    async def rerank(body: CohereRerank) -> Response:
        """Rank documents by their probability of matching a query, best first."""
        return await ranked(body, "1")

    @app.post("/v2/rerank", **options)
    async def rerank_2(body: CohereRerank) -> Response:
        """Rank documents by their probability of matching a query, best first."""
        return await ranked(body, "2")
