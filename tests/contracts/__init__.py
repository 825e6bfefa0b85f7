"""What holds for every implementation of a seam: the product's own, and the fakes of the tests.

What belongs here: plain functions, without pytest, so that they run in a machine of tests/kernel.
"""
