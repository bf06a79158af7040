"""The small encoder that teaches: loaded, run once a text, cached, calibrated."""
