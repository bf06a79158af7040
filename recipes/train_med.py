"""Medicine: train a flipped student on questions and titles of articles, and compare it with its teacher, the bare LLM
and plain fine-tuning.

Without arguments: the embedded mini setting (lay questions against technical titles, a small BERT teacher and a small
Qwen2 student, both built in the run), offline, on any machine.

    accelerate launch recipes/train_med.py
    accelerate launch recipes/train_med.py --config recipes/configs/med_full.yaml
    accelerate launch recipes/train_med.py --train_file train.jsonl --validation_file dev.jsonl --test_file test.jsonl
    --teacher my-slm --student my-llm

NFCorpus pairs, as in the paper, are made by recipes/data/build_pairs.py. Every setting is a flag (--help) or a key of
the YAML file.
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
        output_dir="outputs/med",
        mini_config=HERE / "configs" / "med_mini.yaml",
        mini_data=HERE / "data" / "med_mini",
        build_teacher=build_mini_teacher,
        build_student=build_mini_student,
    )


if __name__ == "__main__":
    main()
