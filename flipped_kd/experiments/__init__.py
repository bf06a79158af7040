"""Comparisons of systems over seeds: recipes, ablations, reports."""
