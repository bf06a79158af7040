"""The routes of our own: decisions on pairs, and the corpus."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.responses import Response

from ..engine import Engine
from ..errors import Refused
from ..schemas import Found, Match, Matches, Reloaded, Search, TeiError
from ..service import Service
from .answers import answer, best_first, errors


def add_routes(app: FastAPI, service: Service) -> None:
    """Add them to an application."""

    @app.post("/match", tags=["flipped_kd"], response_model=Matches, responses=errors(TeiError))
    async def match(body: Match) -> Response:
        """The probability that each pair matches, by which score, and the decision at a threshold."""
        engine = service.engine
        kind = engine.checked_kind(body.score)
        found = await engine.log_odds([(a, b) for a, b in body.pairs], kind, every=body.all_scores)
        said: list[bool | None]
        if body.threshold == "tuned":
            said, threshold = engine.decisions(found.log_odds, kind), engine.threshold(kind)
        else:
            threshold = body.threshold
            said = (found.probability >= threshold).tolist()
        rows = zip(found.probability, said, found.answer, found.cosine, strict=True)
        results = [
            {"probability": float(p), "match": m, "answer_log_odds": _known(a), "cosine": _known(c)}
            for p, m, a, c in rows
        ]
        return answer({"score": kind, "threshold": threshold, "results": results})

    @app.post("/search", tags=["flipped_kd"], response_model=Found, responses=errors(TeiError, 404))
    async def search(body: Search) -> Response:
        """The texts of the corpus nearest to a query, ranked again by their probability of a match if asked for."""
        engine = service.engine
        index = None if service.corpus is None else service.corpus.index
        if index is None:
            raise Refused(404, "there is no corpus: start the server with --corpus FILE.")
        if 0 < body.rerank < body.top_k:
            raise Refused(422, f"rerank: it must be 0 or at least top_k, {body.top_k}: give a larger one.")
        if body.score is not None and not body.rerank:
            raise Refused(422, f"score: it is what rerank ranks by: give rerank {body.top_k} or more, or no score.")
        kind = engine.checked_kind(body.score)
        hits = await engine.nearest(body.query, index, max(body.top_k, body.rerank))
        rows = [
            {
                "index": hit["corpus_id"],
                "id": hit["corpus_id"] if index.ids is None else index.ids[hit["corpus_id"]],
                "text": index.texts[hit["corpus_id"]],
                "score": hit["score"],
                "cosine": hit["score"],
                **dict.fromkeys(("probability", "match", "answer_log_odds")),
            }
            for hit in hits
        ]
        if not body.rerank:
            return answer({"score": None, "threshold": None, "results": rows})
        rows = await _ranked(engine, body, rows, kind)
        return answer({"score": kind, "threshold": engine.threshold(kind), "results": rows})

    @app.post("/corpus/reload", tags=["server"], response_model=Reloaded, responses=errors(TeiError, 403, 404, 409))
    async def reload() -> Response:
        """Read the corpus anew; the one before is served until the new one is ready, and stays where that fails."""
        if service.settings.token is None:
            raise Refused(403, "this needs a token: start the server with one, or send its process SIGHUP.")
        texts, encoded, seconds = await service.reload_corpus()
        return answer({"texts": texts, "encoded": encoded, "seconds": seconds})


async def _ranked(engine: Engine, body: Search, rows: list[dict[str, Any]], kind: Any) -> list[dict[str, Any]]:
    """The best of the rows by their probability of a match."""
    cosines = np.array([row["cosine"] for row in rows])
    pairs = [(body.query, row["text"]) for row in rows]
    try:
        found = await engine.log_odds(pairs, kind, every=body.all_scores, cosines=cosines, one_query=True)
    except Refused as refused:
        if refused.status not in (413, 422):
            raise
        # One search cannot be sent as several.
        reason = f"rerank={len(pairs)} is too much here ({refused.reason.split(':')[0]}): give a smaller one."
        raise Refused(refused.status, reason) from None
    said = engine.decisions(found.log_odds, kind)
    for place, row in enumerate(rows):
        row["score"] = row["probability"] = float(found.probability[place])
        row["match"], row["answer_log_odds"] = said[place], _known(found.answer[place])
    return [rows[place] for place in best_first(found.log_odds, body.top_k)]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
