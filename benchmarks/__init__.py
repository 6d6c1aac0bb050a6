"""Measures what a request costs: `make bench`, or `python -m benchmarks --help`. The method is in docs/performance.md."""
