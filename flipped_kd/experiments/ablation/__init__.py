"""Many training runs from one plan: run, tables, plots."""
