"""What the larger commands of ``llmbench`` do. None of them needs pytest."""
