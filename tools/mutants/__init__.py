"""`make mutants`: small faults, planted one at a time, that the tests should notice.

What belongs where: `mutations` finds the faults in a text, `choice` draws some, `reach` knows which
tests meet them (`recorder` and `probes` note it), `worker` runs those in a process of its own,
`bench` has two of these, and `__main__` says what came of it.
"""
