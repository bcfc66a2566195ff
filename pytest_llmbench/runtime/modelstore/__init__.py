"""Models: where they are, where they come from, and how they get here."""
