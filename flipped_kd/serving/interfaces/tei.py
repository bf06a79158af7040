"""The routes of text-embeddings-inference."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.responses import Response

from ...utils.version import __version__
from ..metrics import corpus_size
from ..schemas import Info, TeiEmbed, TeiError, TeiRank, TeiRerank, TeiSimilarity
from ..service import Service
from .answers import answer, best_first, check_dimensions, errors

TAGS: list[Any] = ["text-embeddings-inference"]


def add_routes(app: FastAPI, service: Service) -> None:
    """Add them to an application."""

    @app.post("/rerank", tags=TAGS, response_model=list[TeiRank], responses=errors(TeiError))
    async def rerank(body: TeiRerank) -> Response:
        """Rank texts by their probability of matching a query, or its log-odds (`raw_scores`), best first."""
        engine = service.engine
        pairs = [(body.query, text) for text in body.texts]
        found = await engine.log_odds(pairs, None, body.truncate is not False, one_query=True)
        scores = found.log_odds if body.raw_scores else found.probability
        ranked: list[dict[str, Any]] = [
            {"index": place, "score": float(scores[place])} for place in best_first(found.log_odds)
        ]
        if body.return_text:
            ranked = [rank | {"text": body.texts[rank["index"]]} for rank in ranked]
        return answer(ranked)

    @app.post("/embed", tags=TAGS, response_model=list[list[float]], responses=errors(TeiError))
    async def embed(body: TeiEmbed) -> Response:
        """Unit vectors of texts."""
        engine = service.engine
        check_dimensions(body.dimensions, engine.matcher.encoder.dimension)
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        vectors, _ = await engine.vectors(texts, body.truncate is not False)
        return answer(vectors.tolist())

    @app.post("/similarity", tags=TAGS, response_model=list[float], responses=errors(TeiError))
    async def similarity(body: TeiSimilarity) -> Response:
        """Cosines of a sentence with others."""
        inputs, options = body.inputs, body.parameters
        may_cut = options is None or options.truncate is not False
        vectors, _ = await service.engine.vectors([inputs.source_sentence, *inputs.sentences], may_cut)
        wide = vectors.astype(np.float64)
        return answer(np.clip(wide[1:] @ wide[0], -1, 1).tolist())

    @app.get("/info", tags=TAGS, response_model=Info, responses=errors(TeiError))
    async def info() -> Response:
        """What serves, and its limits."""
        engine, settings = service.engine, service.settings
        matcher, scorer = engine.matcher, engine.scorer
        kinds = list(scorer.kinds)
        labels = {"id2label": {"0": "match"}, "label2id": {"match": 0}}
        told = Info(
            model_id=settings.name,
            model_dtype=str(matcher.model.dtype).removeprefix("torch."),
            model_type={"reranker": labels},
            version=__version__,
            max_concurrent_requests=settings.limits.waiting_requests,
            max_input_length=matcher.prompt.max_length,
            max_batch_tokens=service.batcher.round_tokens,
            max_client_batch_size=settings.limits.texts,
            dimensions=matcher.encoder.dimension,
            score=engine.kind,
            scores=kinds,
            thresholds={kind: scorer.threshold(kind) for kind in kinds} if engine.has_threshold else {},
            corpus=corpus_size(service),
        )
        return answer(told)

    @app.get("/health", tags=TAGS, responses={503: {"model": TeiError, "description": "Not ready."}})
    async def health() -> dict[str, str]:
        """Whether requests are answered: 503 until model and corpus are loaded."""
        _ = service.engine
        return {"status": "ready"}

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
