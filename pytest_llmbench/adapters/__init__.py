"""Everything that knows pytest or xdist."""
