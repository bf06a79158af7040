"""Pairs and tables, in and out: loading, the rules for a row, keys of texts, long jobs over tables."""
