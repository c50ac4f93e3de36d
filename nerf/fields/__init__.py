"""Encodings, networks, the radiance field made of both, and the occupancy grid that goes with it."""
