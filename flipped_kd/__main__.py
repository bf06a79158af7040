"""`python -m flipped_kd` is `flipped-kd`; `accelerate launch -m flipped_kd predict ...` runs it on several devices."""

import sys

from .cli.main import main

sys.argv[0] = "flipped-kd"
sys.exit(main())
