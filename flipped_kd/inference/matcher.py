"""FlippedMatcher: a trained adapter, or the model merged from it, in use. It answers, encodes, searches and ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..utils.choices import IndexKind, ScoreKind
from ..utils.hub_download import Access
from .inputs import checked_count, text_list, unique
from .loading import load_matcher, local_folder, resolved_device, resolved_dtype
from .model_runner import Bar
from .nearest import resolved_kind
from .prefix_cache import CachedPrefix
from .scorer import PairScorer, row_cosines
from .search_index import SearchIndex, best_hits, checked_vectors, with_texts

# Cosine of one text's vectors from the same encoder run in two ways, half precision included, at the least.
SAME_VECTOR = 0.999


class FlippedMatcher(PairScorer):
    """Scores pairs of texts, encodes texts, and searches and ranks by both.

    Two scores of a pair: the answer's log-odds logit(yes) - logit(no) after the pair's prompt, and the cosine of the
    two texts' vectors, each encoded alone, whatever `representation` the training had. Equal texts and pairs are
    computed once (of a Dataset among 16,384 rows at a time). Texts over the prompt's limit are cut, with one warning.

    Args:
        model: the model with its adapter, or merged; put into evaluation mode.
        tokenizer: the model's.
        prompt: the prompt that the model was trained with.
        encoder: attached to `model`.
        match_score: makes probabilities of both scores; without it there is score="answer" only.

    Attributes:
        source: what `from_pretrained` was given; "" otherwise.

    Examples:
        `adapter` is the folder or Hub id of a trained adapter, or of the model merged from it.

        >>> matcher = FlippedMatcher.from_pretrained(adapter, device="cpu")
        >>> matcher.predict([("where is my card", "my card is lost"), ("cash", "a loan")]).shape
        (2,)
        >>> matcher.encode("where is my card").shape == (matcher.encoder.dimension,)
        True
        >>> index = matcher.index(["cancel the loan", "where is my card", "a refund"])
        >>> [hit["corpus_id"] for hit in matcher.search("where is my card", index, top_k=1)[0]]
        [1]
    """

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        base_model: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> FlippedMatcher:
        """Load an adapter or a merged model, from safetensors only.

        Args:
            name_or_path: folder of an adapter or a merged model, or Hub id of either.
            revision: branch, tag or commit on the Hub.
            device: by default a GPU if there is one.
            dtype: "auto" is float32 on a CPU, bfloat16 on a GPU that has it; or "float32", torch.bfloat16 ...
            base_model: folder or Hub id of an adapter's base, if not where the adapter says.
            token: for private repositories; None takes the one of `hf auth login`.
            trust_remote_code: run model code from the repository (of the base).
            cache_dir: where downloads are kept.

        Raises:
            ValueError: no such folder or repository, or no access to it; contract files missing, broken or of a newer
                release; an adapter that does not fit the base; an unknown dtype or device.
        """
        place = resolved_device(device)
        precision = resolved_dtype(dtype, place)
        access = Access(token, cache_dir, trust_remote_code)
        folder = local_folder(name_or_path, revision=revision, access=access)
        loaded = load_matcher(folder, device=place, dtype=precision, base_model=base_model, access=access)
        matcher = cls(loaded.model, loaded.tokenizer, loaded.prompt, loaded.encoder, loaded.match_score)
        matcher.source = os.fspath(name_or_path)
        return matcher

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        score: ScoreKind | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents by their probability of matching a query, as CrossEncoder.rank does.

        The prompt up to the document is computed once, its key/value cache used for every document.

        Args:
            query: text_a of every pair.
            documents: n texts b.
            top_k: how many to give; None gives all.
            score: as in `predict`.
            return_documents: give the texts too.
            batch_size: documents read at a time.
            show_progress_bar: None shows it where the logger is at INFO.

        Returns:
            Dicts with corpus_id (position in `documents`), score (probability, as `predict` gives it) and, if asked
            for, text; best first.

        Raises:
            TypeError: the query or a document is no str, or the documents are one.
            ValueError: a score that this model has no match score for, or a count below 1.
        """
        kind = self._kind(score)
        batch_size = checked_count("batch_size", batch_size)
        if top_k is not None:
            top_k = checked_count("top_k", top_k)
        documents = text_list("documents", documents)
        if not isinstance(query, str):
            raise TypeError(f"query must be one str, got {query!r}. Call rank once for each.")
        with self._bar("documents", len(documents), show_progress_bar) as bar:
            found = self._match(query, documents, kind, None, batch_size, bar)
        ranked = best_hits(found, range(len(documents)), top_k)
        return with_texts(ranked, documents) if return_documents else ranked

    def _match(
        self,
        query: str,
        documents: list[str],
        kind: ScoreKind,
        similarity: np.ndarray | None,
        batch_size: int,
        bar: Bar,
        read: CachedPrefix | None = None,
    ) -> np.ndarray:
        """Log-odds (n,) that documents match a query; `similarity` (n,) and the query, read, if known already."""
        distinct, order = unique(documents)
        unknown = np.full(len(documents), np.nan)
        answer = unknown
        if kind != "similarity":
            answer = self._reader.answers([(query, text) for text in distinct], batch_size, bar, read)[order]
        if kind != "answer" and similarity is None:
            texts, place = unique([query, *distinct])
            vectors = self._vectors(texts, batch_size, False)
            similarity = row_cosines(vectors, place[:1] * len(distinct), place[1:])[order]
        bar.update(len(documents) - (len(distinct) if kind != "similarity" else 0))
        return self._log_odds(answer, unknown if similarity is None else similarity, kind)

    def index(
        self,
        corpus: Sequence[str],
        *,
        kind: IndexKind = "auto",
        vectors: np.ndarray | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> SearchIndex:
        """Encode a corpus once for many searches; `SearchIndex.save` and `load` keep it.

        Args:
            corpus: n texts.
            kind: "exact" compares with every text. "hnsw" (graph) and "ivf" (cells) look at a part, by FAISS; the log
                says how many of the true nearest they find. "auto": exact to 100,000 texts, "ivf" above, if there.
            vectors: (n, D) what `encode` gave for the corpus, if it was asked before; of the first and the last text
                they are checked.
            batch_size: texts read at a time.
            show_progress_bar: None shows it where the logger is at INFO.

        Returns:
            Texts and vectors.

        Raises:
            TypeError: the corpus is one str, or a text is none.
            ImportError, ValueError: FAISS is wanted and not installed; an unknown kind; vectors of other texts or of
                another encoder.
        """
        kind = resolved_kind(kind, len(texts := text_list("corpus", corpus)))
        if vectors is None:
            vectors = self.encode(texts, batch_size=batch_size, show_progress_bar=show_progress_bar)
        else:
            vectors = checked_vectors(vectors, len(texts), self.encoder.dimension)
            self._check_index(SearchIndex(texts, torch.from_numpy(vectors), self.vector_definition()))
        return SearchIndex.of_matcher(self, texts, vectors, kind)

    def search(
        self,
        queries: str | Sequence[str],
        corpus: Sequence[str] | SearchIndex,
        top_k: int = 10,
        *,
        rerank: int = 0,
        score: ScoreKind | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Retrieve by the cosine of vectors, then, if asked for, rank the head by the probability of a match.

        Args:
            queries: m texts, or one.
            corpus: n texts, or their index (`index`).
            top_k: results for each query.
            rerank: how many of the nearest texts are ranked again, at least `top_k`; 0 keeps the order of the cosines.
            score: what `rerank` ranks by, as in `predict`; the cosines of the retrieval serve as the similarity.
            return_documents: give the texts too.
            batch_size: texts or documents read at a time.
            show_progress_bar: None shows it where the logger is at INFO.

        Returns:
            For each query (one list of results for one text too) dicts with corpus_id and score, best first: the
            cosine, or the probability after `rerank`; fewer than top_k where the corpus is smaller.

        Raises:
            TypeError: a query or a text is no str.
            ValueError: 0 < rerank < top_k, a score that this model lacks, or an index of another encoder.
        """
        top_k, batch_size = checked_count("top_k", top_k), checked_count("batch_size", batch_size)
        rerank = checked_count("rerank", rerank, 0)
        if 0 < rerank < top_k:
            raise ValueError(
                f"rerank={rerank!r} must be 0 or at least top_k={top_k}: probabilities and cosines do not mix."
                " Give a larger rerank or a smaller top_k."
            )
        if score is not None and not rerank:
            raise ValueError(f"score={score!r} is what rerank ranks by: give rerank={top_k} or more, or no score.")
        kind = self._kind(score)
        distinct, order = unique(text_list("queries", queries))
        options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        index = corpus if isinstance(corpus, SearchIndex) else self.index(corpus, **options)  # type: ignore[arg-type]
        self._check_index(index)
        if not distinct or not len(index):
            return [[] for _ in order]
        read = None
        if len(distinct) == 1 and rerank and kind != "similarity":  # many queries are sooner read side by side
            vector, read = self._reader.query(distinct[0])
            vectors = vector[None].to(self.device)
        else:
            vectors = self.encode(distinct, **options, convert_to_tensor=True)  # type: ignore[call-overload]
        found = index.nearest(vectors, max(top_k, rerank))
        if rerank:
            with self._bar("queries", len(distinct), show_progress_bar) as bar:
                found = [
                    self._rerank(query, hits, index, kind, top_k, batch_size, bar, read)
                    for query, hits in zip(distinct, found, strict=True)
                ]
        if return_documents:
            found = [with_texts(hits, index.texts) for hits in found]
        return [[dict(hit) for hit in found[place]] for place in order]

    def _rerank(
        self,
        query: str,
        hits: list[dict[str, Any]],
        index: SearchIndex,
        kind: ScoreKind,
        top_k: int,
        batch_size: int,
        bar: Bar,
        read: CachedPrefix | None,
    ) -> list[dict[str, Any]]:
        ids = [hit["corpus_id"] for hit in hits]
        texts = [index.texts[i] for i in ids]
        cosines = np.array([hit["score"] for hit in hits], dtype=np.float64)
        found = self._match(query, texts, kind, cosines, batch_size, tqdm(disable=True), read)
        bar.update(1)
        return best_hits(found, ids, top_k)

    def vector_definition(self) -> dict[str, Any]:
        """What vectors depend on besides the weights."""
        wrap = {"wrap_a": list(self.prompt.wrap_a)} if any(self.prompt.wrap_a) else {}
        return self.encoder.to_dict() | {"prefix": self.prompt.prefix, "text_tokens": self.prompt.room // 2} | wrap

    def _check_index(self, index: SearchIndex) -> None:
        """Raise ValueError unless this encoder gives the index's vectors; its first and last text are tried."""
        if self in index.known_to:
            return
        tried = sorted({0, len(index) - 1}) if len(index) else []
        same = index.encoder == self.vector_definition()
        if same and tried:
            vectors = torch.from_numpy(self.encode([index.texts[i] for i in tried], show_progress_bar=False))
            same = bool(((vectors * index.embeddings[tried]).sum(1) > SAME_VECTOR).all())
        if not same:
            raise ValueError(
                f"the index was made by another encoder than that of {self.source or 'this matcher'!r}: its vectors "
                "mean nothing here. Make it again with matcher.index(texts)."
            )
        index.known_to.add(self)
