"""What recipes and `flipped-kd train` are told beside the trainer's settings: student, pairs and teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..utils.checks import require, require_integer


@dataclass
class StudentArguments:
    """The decoder-only student and its LoRA adapter.

    Args:
        student: Hub name, folder or GGUF file of a causal language model.
        student_revision: branch, tag or commit on the Hub.
        lora_r: rank of A and B.
        lora_alpha: numerator of the scaling alpha / r.
        lora_dropout: dropout before A.
        lora_target_modules: "all-linear" or comma-separated endings of module names.
        student_dtype: dtype the weights are loaded in: "auto" (float32 on a CPU and with precision="fp32", bfloat16 on
            a GPU that has it), "float32" or "bfloat16".
        load_in_4bit: QLoRA: keep the student's frozen weights in 4 bits (needs the extra `qlora`).
        trust_remote_code: run code that the student's or teacher's repository brings. Never on unless asked.

    Raises:
        ValueError: a setting is out of range.
    """

    student: str | None = field(default=None, metadata={"help": "Hub name, folder or GGUF file of the student."})
    student_revision: str | None = field(default=None, metadata={"help": "Revision of the student on the Hub."})
    lora_r: int = field(default=32, metadata={"help": "Rank of A and B."})
    lora_alpha: float = field(default=64.0, metadata={"help": "Numerator of the scaling alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before A."})
    lora_target_modules: str = field(
        default="all-linear", metadata={"help": "all-linear or comma-separated module names."}
    )
    student_dtype: str = field(default="auto", metadata={"help": "auto, float32 or bfloat16."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: frozen weights in 4 bits (NF4)."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model repositories."})

    def __post_init__(self) -> None:
        require_integer("lora_r", self.lora_r, 1, "it is the rank of A and B.")
        positive = math.isfinite(self.lora_alpha) and self.lora_alpha > 0
        require(positive, "lora_alpha", self.lora_alpha, "give a positive number; twice the rank is usual.")
        require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a dropout share lies in [0, 1).")
        dtypes = ("auto", "float32", "bfloat16")
        require(self.student_dtype in dtypes, "student_dtype", self.student_dtype, f"choose one of {list(dtypes)}.")


@dataclass
class DataArguments:
    """The pairs and the teacher.

    Args:
        train_file: local file (JSONL, CSV, TSV, Parquet) or Hub data set of the training pairs; validation_file,
            test_file likewise.
        questions_file: FAQ retrieval: JSON Lines of canonical questions (id, question). The three files then hold
            queries (query, question_id), from which pairs are made (`faq.faq_pairs`, seed 0); all questions are ranked
            for each test query.
        max_eval_queries: FAQ retrieval: make validation and test pairs of a random subset of so many queries; ranking
            takes all.
        max_answer_rankings: FAQ retrieval: rank by the student's answers too, not by vectors alone, where test queries
            times questions are at most so many; each is a forward pass. 0 never does.
        unlabelled_file: texts of the field without labels, from which A starts too (`encoder_start`): one on each
            line, or the column `unlabelled_column` of a table.
        dataset_name: a Hub data set with splits train, validation, test, instead of files.
        text_a_column: name of the column of the first text; text_b_column, label_column likewise.
        label_threshold: turns a score column into labels: score >= threshold is 1.
        skip_bad_rows: leave out bad rows, saying how many, instead of stopping.
        max_train_pairs: train on a random subset of this size, drawn by the seed.
        max_validation_pairs: fit thresholds and calibration on a random subset of this size, one for all seeds.
        max_test_pairs: the same for the test pairs.
        teacher: Hub name or folder of the small expert; teacher_revision its revision.
        seeds: how many seeds to run, counted from `seed`.
        baseline: train plainly with the same budget too, to compare with. False saves almost half the time; the
            report then holds the flipped student against the teacher and the bare LLM.

    Raises:
        ValueError: a setting is out of range, or bounds the pairs of an FAQ, whose queries are counted.
    """

    train_file: str | None = field(default=None, metadata={"help": "Training pairs: file or Hub data set."})
    validation_file: str | None = field(default=None, metadata={"help": "Validation pairs."})
    test_file: str | None = field(default=None, metadata={"help": "Test pairs."})
    questions_file: str | None = field(
        default=None, metadata={"help": "FAQ retrieval: canonical questions; the other files hold queries."}
    )
    max_eval_queries: int | None = field(
        default=None, metadata={"help": "FAQ retrieval: queries that validation and test pairs are made of."}
    )
    max_answer_rankings: int = field(
        default=10_000,
        metadata={"help": "FAQ retrieval: rank by answers too where queries times questions are at most so many."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub data set with splits train, validation, test."}
    )
    unlabelled_file: str | None = field(
        default=None, metadata={"help": "Texts without labels, for the start of A: one a line, or a table."}
    )
    unlabelled_column: str = field(default="text", metadata={"help": "Column of the texts in unlabelled_file."})
    text_a_column: str = field(default="text_a", metadata={"help": "Column of the first text."})
    text_b_column: str = field(default="text_b", metadata={"help": "Column of the second text."})
    label_column: str = field(default="label", metadata={"help": "Column of the label."})
    label_threshold: float | None = field(default=None, metadata={"help": "Scores from here on count as label 1."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Leave out bad rows instead of stopping."})
    max_train_pairs: int | None = field(default=None, metadata={"help": "Train on a random subset of this size."})
    max_validation_pairs: int | None = field(
        default=None, metadata={"help": "Take a random subset of the validation pairs of this size."}
    )
    max_test_pairs: int | None = field(
        default=None, metadata={"help": "Take a random subset of the test pairs of this size."}
    )
    teacher: str | None = field(default=None, metadata={"help": "Hub name or folder of the teacher."})
    teacher_revision: str | None = field(default=None, metadata={"help": "Revision of the teacher on the Hub."})
    seeds: int = field(default=1, metadata={"help": "How many seeds to run, counted from --seed."})
    baseline: bool = field(default=True, metadata={"help": "Train plainly with the same budget too, to compare with."})

    def __post_init__(self) -> None:
        require_integer("seeds", self.seeds, 1, "at least one run is needed.")
        require_integer("max_answer_rankings", self.max_answer_rankings, 0, "0 ranks by vectors alone.")
        for name in ("max_train_pairs", "max_validation_pairs", "max_test_pairs", "max_eval_queries"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1, "leave it out to take all.")
        for name in ("max_validation_pairs", "max_test_pairs"):
            rule = "an FAQ's validation and test pairs are bounded by max_eval_queries, not by pairs; leave it out."
            require(self.questions_file is None or getattr(self, name) is None, name, getattr(self, name), rule)
        if self.label_threshold is not None:
            rule = "scores from here on count as label 1; give a finite number."
            require(math.isfinite(self.label_threshold), "label_threshold", self.label_threshold, rule)
