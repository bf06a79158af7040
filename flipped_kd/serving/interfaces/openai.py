"""OpenAI's route for vectors."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from ..schemas import OpenAIEmbeddings, OpenAIError, OpenAIVectors
from ..service import Service
from .answers import answer, check_dimensions, errors


def add_routes(app: FastAPI, service: Service) -> None:
    """Add it to an application."""

    @app.post("/v1/embeddings", tags=["OpenAI"], response_model=OpenAIVectors, responses=errors(OpenAIError))
    async def embeddings(body: OpenAIEmbeddings) -> Response:
        """Unit vectors of texts, as numbers or as base64 of their float32 bytes."""
        engine = service.engine
        check_dimensions(body.dimensions, engine.matcher.encoder.dimension)
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, tokens = await engine.vectors(texts)
        shown: list[Any]
        if body.encoding_format == "base64":
            shown = [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
        else:
            shown = vectors.tolist()
        return answer(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(shown)],
                "model": service.settings.name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )
