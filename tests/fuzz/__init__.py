"""Fuzzers: they look for input that no test of ours thought of. `run.py` has the table of them; CONTRIBUTING.md says how to use them."""
