"""Parts of scripts/fuzz.py: the inputs that are damaged, and how."""
