"""What scripts/bench.py runs, each job in a process of its own."""
