"""A rank that meets the other one, and then does as it is told; see test_launching.py."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist


def main(task: str, folder: Path) -> None:
    """`end`; `fail`: the last rank does, the first would wait for ever; `hang`: both would. Each leaves a file."""
    dist.init_process_group("gloo")
    dist.barrier()
    (folder / os.environ["RANK"]).touch()
    if task == "fail" and os.environ["RANK"] == "1":
        sys.exit("the last rank fails")
    if task != "end":
        time.sleep(600)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
