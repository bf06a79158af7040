"""The version of the package; setup.cfg and CITATION.cff name the same one."""

__version__ = "0.1.0"
