"""Finance: train a flipped student on labelled pairs and compare it with its teacher, the bare LLM and plain
fine-tuning.

Without arguments: the embedded finance pairs, with SmolLM2-135M-Instruct as the student and a MiniLM, fine-tuned on
the pairs first, as the teacher (`demo_models`); at the end three questions are answered. With `--student mini
--teacher mini`: tiny models that are built in the run, offline.

    accelerate launch recipes/train_fin.py
    accelerate launch recipes/train_fin.py --config recipes/configs/fin_full.yaml
    accelerate launch recipes/train_fin.py --train_file train.jsonl --validation_file dev.jsonl --test_file test.jsonl
    --teacher my-slm --student my-llm

Every setting is a flag (--help) or a key of the YAML file.
"""

import sys
from functools import partial
from pathlib import Path

from demo_answers import show_page_and_answers
from demo_models import demo_models
from demo_teacher import train_demo_teacher
from mini_student import build_mini_student
from mini_teacher import build_mini_teacher

from flipped_kd.experiments.recipe import DemoModels, run_recipe

HERE = Path(__file__).parent
MINI_DATA = HERE / "data" / "fin_mini"


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    run_recipe(
        sys.argv[1:] if argv is None else argv,
        output_dir="outputs/fin",
        mini_config=HERE / "configs" / "fin_mini.yaml",
        mini_data=MINI_DATA,
        build_teacher=build_mini_teacher,
        build_student=build_mini_student,
        demo=DemoModels(
            config=HERE / "configs" / "fin_demo.yaml",
            fetch=demo_models,
            train_teacher=train_demo_teacher,
            show=partial(show_page_and_answers, test_file=MINI_DATA / "test.jsonl"),
        ),
    )


if __name__ == "__main__":
    main()
