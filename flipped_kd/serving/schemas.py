"""What requests and answers look like, for checking and for the OpenAPI page.

Interfaces of others are taken as their clients speak them, unknown fields and all; ours refuse a mistyped field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from ..utils.choices import ScoreKind

# A text with at least one character that is not white space, as everywhere in this package.
Text = Annotated[str, StringConstraints(pattern=r"\S")]
# Lists are checked up to their first wrong element: an error for each of many would keep the event loop for seconds.
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
# More unknown fields than these are one error, for the same reason.
UNKNOWN_FIELDS = 8
Cut = Annotated[
    bool | None, Field(description="Whether texts that are too long are cut (default), or refused with 413.")
]


def _no_tokens(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(entry, int | list) for entry in value[:1]):
        raise PydanticCustomError(
            "token_ids",
            "token ids are not taken, since they are another tokenizer's: send texts (langchain_openai: "
            "check_embedding_ctx_length=False)",
        )
    return value


TextOrTexts = Annotated[Text | Texts, BeforeValidator(_no_tokens)]


class Theirs(BaseModel):
    """A request in the form of somebody else's interface."""

    model_config = ConfigDict(strict=True, protected_namespaces=())


class Ours(BaseModel):
    """A request in a form of our own."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + UNKNOWN_FIELDS:
            raise PydanticCustomError(
                "unknown_fields",
                "it has {count} fields, most of them unknown: give only {names}",
                {"count": len(value), "names": ", ".join(cls.model_fields)},
            )
        return value


# ---- text-embeddings-inference ----


class TeiOptions(Theirs):
    """What its routes have in common."""

    truncate: Cut = None
    truncation_direction: Literal["Right", "right"] | None = Field(
        None, description="Texts are cut at their end, as in training."
    )


class TeiRerank(TeiOptions):
    """A query and texts to be ranked."""

    query: Text
    texts: Texts
    raw_scores: bool = Field(False, description="Give log-odds in the place of probabilities.")
    return_text: bool = False


class TeiRank(BaseModel):
    """One text, by its place in the request."""

    index: int
    score: float
    text: str | None = None


class TeiEmbed(TeiOptions):
    """Texts to be encoded."""

    inputs: TextOrTexts
    normalize: bool = Field(True, description="Vectors have length 1 either way.")
    prompt_name: None = Field(None, description="There are no prompts to choose from.")
    dimensions: int | None = Field(None, ge=1, description="The model's own number, if any.")


class SimilarityInputs(Theirs):
    """A sentence and those it is compared with."""

    source_sentence: Text
    sentences: Texts


class TeiSimilarity(Theirs):
    """Sentences to be compared."""

    inputs: SimilarityInputs
    parameters: TeiOptions | None = None


class Info(BaseModel):
    """What serves, and how much may be asked of it."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_dtype: str
    model_type: dict[str, Any]
    version: str
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool = True
    dimensions: int
    score: ScoreKind
    scores: list[ScoreKind]
    thresholds: dict[str, float]
    corpus: int | None = Field(description="Texts of the corpus, where there is one.")


# ---- OpenAI ----


class OpenAIEmbeddings(Theirs):
    """Texts to be encoded."""

    input: TextOrTexts
    model: str | None = Field(None, description="Any name: one model is served.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="The model's own number, if any.")
    user: str | None = None


class OpenAIEmbedding(BaseModel):
    """A vector, or its float32 bytes (little-endian) as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class OpenAIVectors(BaseModel):
    """The vectors of a request's texts, in their order."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


# ---- Cohere, Jina ----


class Document(Theirs):
    """A text as Cohere and Jina also write it."""

    text: Text


class CohereRerank(Theirs):
    """A query and documents to be ranked."""

    query: Text
    documents: Annotated[list[Text | Document], Field(min_length=1, fail_fast=True)]
    model: str | None = Field(None, description="Any name: one model is served.")
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None


class CohereResult(BaseModel):
    """One document, by its place in the request."""

    index: int
    relevance_score: float
    document: Document | None = None


class CohereRanking(BaseModel):
    """Documents, best first."""

    id: str
    model: str
    object: Literal["list"] = "list"
    results: list[CohereResult]
    usage: OpenAIUsage
    meta: dict[str, Any]


# ---- Our own ----


class Match(Ours):
    """Pairs to be judged."""

    pairs: Annotated[
        list[Annotated[list[Text], Field(min_length=2, max_length=2, fail_fast=True)]],
        Field(min_length=1, fail_fast=True, description="[text_a, text_b] each."),
    ]
    score: ScoreKind | None = Field(None, description="What probabilities are made of; by default the model's own.")
    threshold: Literal["tuned"] | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        "tuned", description="Probability from which on a pair matches; tuned: the one chosen on validation pairs."
    )
    all_scores: bool = Field(False, description="Compute answer and cosine, whether or not the score needs both.")


class PairResult(BaseModel):
    """One pair. What was not computed, and a decision that no threshold was given for, is null."""

    probability: float
    match: bool | None
    answer_log_odds: float | None
    cosine: float | None


class Matches(BaseModel):
    """Pairs in their order."""

    score: ScoreKind
    threshold: float | None
    results: list[PairResult]


class Search(Ours):
    """A query for the corpus."""

    query: Text
    top_k: int = Field(10, ge=1, le=1000)
    rerank: int = Field(0, ge=0, le=1000, description="Rank so many of the nearest again; 0 keeps the cosine's order.")
    score: ScoreKind | None = Field(None, description="What is ranked by; by default the model's own.")
    all_scores: bool = Field(False, description="With rerank: the answer too where the score does without it.")


class Hit(BaseModel):
    """A text of the corpus. `score` is the cosine, or with `rerank` the probability of a match."""

    index: int
    id: int | str
    text: str
    score: float
    cosine: float
    probability: float | None
    match: bool | None
    answer_log_odds: float | None


class Found(BaseModel):
    """The texts of the corpus that a query found, best first."""

    score: ScoreKind | None
    threshold: float | None
    results: list[Hit]


class Reloaded(BaseModel):
    """The corpus that is served now."""

    texts: int
    encoded: int = Field(description="Texts whose vectors were not known.")
    seconds: float


class TeiError(BaseModel):
    """Why a request was not done."""

    error: str
    error_type: str


class OpenAIError(BaseModel):
    """Why a request was not done."""

    error: dict[str, Any]


class CohereError(BaseModel):
    """Why a request was not done; `detail` is Jina's name for it."""

    message: str
    detail: str
