"""The `flipped-kd` command."""
