"""A rank that meets the other one, and then does as it is told; see test_launching.py."""

from __future__ import annotations

import os
import sys
import time

import torch.distributed as dist


def main(task: str) -> None:
    """`end`; `fail`: the last rank does, the first would wait for ever; `hang`: both would."""
    dist.init_process_group("gloo")
    dist.barrier()
    if task == "fail" and os.environ["RANK"] == "1":
        sys.exit("the last rank fails")
    if task != "end":
        time.sleep(600)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
