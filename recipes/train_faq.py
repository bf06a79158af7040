"""FAQ retrieval: train a flipped student to find the canonical question that answers a query, and compare it with its
teacher, the bare LLM and plain fine-tuning; all questions are ranked for each test query.

Without arguments: the embedded mini setting (customers of an internet provider, a small BERT teacher and a small Qwen2
student, both built in the run), offline, on any machine.

    accelerate launch recipes/train_faq.py
    accelerate launch recipes/train_faq.py --config recipes/configs/faq_full.yaml
    accelerate launch recipes/train_faq.py --questions_file questions.jsonl --train_file train.jsonl
    --validation_file dev.jsonl --test_file test.jsonl --teacher my-slm --student my-llm

Query files are JSON Lines of query and question_id, the questions' of id and question. Pairs are a query with its
gold question (1) and with four others (0), two that share its rarest words and two at random. Every setting is a flag
(--help) or a key of the YAML file.
"""

import sys
from pathlib import Path

from mini_student import build_mini_student
from mini_teacher import build_mini_teacher

from flipped_kd.experiments.recipe import run_recipe

HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    run_recipe(
        sys.argv[1:] if argv is None else argv,
        output_dir="outputs/faq",
        mini_config=HERE / "configs" / "faq_mini.yaml",
        mini_data=HERE / "data" / "faq_mini",
        build_teacher=build_mini_teacher,
        build_student=build_mini_student,
    )


if __name__ == "__main__":
    main()
