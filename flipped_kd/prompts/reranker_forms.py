"""The forms in which published reranking LLMs were trained, so that one of them can be the student and starts well."""

from __future__ import annotations

from collections.abc import Callable

from .prompt_form import PromptForm


def qwen3_reranker(instruction: str, bos: str) -> PromptForm:
    """Qwen3-Reranker (arXiv 2506.05176, and its model card): a judge's system line, three tags, an empty thought."""
    return PromptForm(
        prefix=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
            'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            f"<Instruct>: {instruction}\n<Query>:"
        ),
        middle="<Document>:",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        wrap_a=(" ", "\n"),
        wrap_b=(" ", ""),
        answers=(("no", "yes"),),
    )


def bge_reranker_gemma(instruction: str, bos: str) -> PromptForm:
    """bge-reranker-v2-gemma (FlagEmbedding's decoder-only rerankers): A, B, and the question after them.

    Its own score is the logit of "Yes" alone; ours is that less the logit of "No".
    """
    return PromptForm(
        prefix=f"{bos}A:",
        middle="B:",
        suffix=instruction,
        wrap_a=(" ", "\n"),
        wrap_b=(" ", "\n"),
        answers=(("No", "Yes"), (" No", " Yes")),
    )


# By the name of the preset: the instruction it was trained with, and its form (from an instruction and a bos token).
RERANKERS: dict[str, tuple[str, Callable[[str, str], PromptForm]]] = {
    "qwen3_reranker": (
        "Given a web search query, retrieve relevant passages that answer the query",
        qwen3_reranker,
    ),
    "bge_reranker_gemma": (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'.",
        bge_reranker_gemma,
    ),
}
