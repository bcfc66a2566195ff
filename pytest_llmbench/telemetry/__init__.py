"""Sensors, one file per source. None yet: this package holds their place in the import contract."""
