"""Long runs, see loops.py."""
