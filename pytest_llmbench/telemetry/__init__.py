"""Sensors, one file per source."""
