"""What knows nothing of the method: files, locks, checks of values, angles, batches by tokens."""
