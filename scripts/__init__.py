"""Tools for those who work on this package; not part of it."""
