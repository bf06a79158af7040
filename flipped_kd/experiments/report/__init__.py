"""A finished comparison as one HTML page."""
