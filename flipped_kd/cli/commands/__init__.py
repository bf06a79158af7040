"""The verbs of `flipped-kd`, one file each; each has a function of the verb's name that takes the parsed options."""
