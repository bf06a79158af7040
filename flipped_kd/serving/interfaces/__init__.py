"""The routes, a file for each interface that clients speak."""
