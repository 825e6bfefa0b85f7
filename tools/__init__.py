"""What makes files out of the code: `make generate`, `make screenshots`, `make dist`.

And what judges its tests: `make mutants`. Rule of this folder: not part of the product, so nothing
in src/ imports it. What `make generate` writes is checked in, and a test says if it is not current.
"""
