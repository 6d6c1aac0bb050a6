"""Deliberate defects, one patch each, with the tests that must notice them: what shows that the tests can fail.

defects.py reads the patches, check.py proves them (`make seeded`), test_defects.py keeps them fit to be proved (`make test`).
"""
