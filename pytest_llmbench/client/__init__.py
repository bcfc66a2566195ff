"""The streaming client that timestamps tokens where their bytes arrive."""
