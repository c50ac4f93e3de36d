"""Posed photos to a `Model`: configuration, pixel sampling, objective, the loop; and a model held against photos."""
