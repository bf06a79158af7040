"""The teacher of the embedded finance setting: all-MiniLM-L6-v2, fine-tuned on its pairs (`train_teacher`)."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
from mini_folder import build_folder
from plain_process import requested, run_alone
from sentence_transformers import SentenceTransformer
from train_teacher import TeacherTraining, train_encoder

from flipped_kd.utils.devices import cpu_cores

# AUC on the 500 validation pairs: .755 before, .874 after one epoch, .933 after four.
EPOCHS = 2


def train_demo_teacher(encoder: str, pairs: datasets.Dataset, folder: Path, *, seed: int = 0) -> Path:
    """Fine-tune a small encoder on labelled pairs; a folder that was made of the same things is taken as it is.

    Args:
        encoder: folder or Hub name of a sentence-transformers model.
        pairs: the training pairs.
        folder: where to.
        seed: of order and dropout.
    """

    def write(partial: Path) -> dict[str, float]:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            _train(encoder, pairs, seed, partial)
        else:  # the other processes wait outside, and would not train along
            columns = {name: list(pairs[name]) for name in ("text_a", "text_b", "label")}
            request = {"encoder": encoder, "pairs": columns, "seed": seed, "folder": str(partial.resolve())}
            # On one GPU, or on all cores: several GPUs would make larger batches, and fewer steps.
            one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            alone = {"CUDA_VISIBLE_DEVICES": one, "OMP_NUM_THREADS": str(cpu_cores())}
            run_alone(__file__, request, "Fine-tuning the teacher", **alone)
        return {}

    description = {"kind": "fine-tuned", "encoder": Path(encoder).name, "epochs": EPOCHS, "seed": seed}
    rows = [list(pairs[column]) for column in ("text_a", "text_b", "label")]
    return build_folder(folder, description, rows, write)


def _train(encoder: str, pairs: datasets.Dataset, seed: int, folder: Path) -> None:
    model = SentenceTransformer(encoder, model_kwargs={"dtype": "float32"})
    train_encoder(model, pairs, TeacherTraining(model=encoder, epochs=EPOCHS, train_seed=seed))
    model.save_pretrained(str(folder))


if __name__ == "__main__":  # the process of its own
    wanted = requested()
    _train(wanted["encoder"], datasets.Dataset.from_dict(wanted["pairs"]), wanted["seed"], Path(wanted["folder"]))
