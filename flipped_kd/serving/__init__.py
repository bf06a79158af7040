"""A trained model behind HTTP: interfaces that clients know, requests joined into batches, and a page."""
