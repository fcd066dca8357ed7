"""Models ready to run, batching across callers, and the repository of what is served."""
