"""A long load on real processes: `python -m tests.soak --minutes 10`."""
