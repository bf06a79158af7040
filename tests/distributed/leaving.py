"""How the ranks of a test end."""

from __future__ import annotations

import os
import sys

from flipped_kd.training.processes import end_together

# In the environment: ranks end as every script does, see tests/soak/ranks.py.
NORMALLY = "TEST_RANKS_END_NORMALLY"


def leave_together() -> None:
    """End all ranks together, and this process at once."""
    end_together()
    leave()


def leave() -> None:
    """End this process at once, after `end_together`.

    A rank hung once in hundreds of runs after all of its work, while Python gave back what the script had made.
    """
    if NORMALLY in os.environ:
        sys.exit()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
