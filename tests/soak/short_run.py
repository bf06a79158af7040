"""What a rank of tests/soak/ranks.py runs: all that ranks do together, in a second or two.

`python -m tests.soak.short_run FOLDER`: DDP over gloo from the first collective call to the last: the teacher's
scores, training with a checkpoint on the way, evaluation, going on from the checkpoint, and the common end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import datasets

from tests.distributed.leaving import leave_together
from tests.invariants.training import lora, new_trainer, settings

STEPS, SAVED = 3, 2


def main(folder: Path) -> None:
    """Train to the end, and once more from the checkpoint on the way."""
    pairs, held_out = (datasets.load_from_disk(str(folder / name)) for name in ("pairs", "held_out"))
    for last in (SAVED, STEPS):
        args = settings(
            folder / "out",
            max_steps=last,
            per_device_train_batch_size=4,
            save_strategy="steps",
            save_steps=SAVED,
            eval_strategy="steps",
            eval_steps=SAVED,
            ddp_backend="gloo",
        )
        models = str(folder / "student"), str(folder / "teacher")
        trainer = new_trainer(args, *models, pairs, held_out, None, peft_config=lora())
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == last
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
