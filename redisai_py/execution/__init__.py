"""From a batch to its answer: opening sessions, running them, ending what runs too long."""
