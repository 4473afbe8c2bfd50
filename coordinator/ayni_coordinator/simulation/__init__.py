"""Whole federations in one process each, to compare methods: `ayni simulate`. `experiment.py` says what is run,
`engine.py` runs it on all cores, `run.py` is one run, `methods/` has one file per method."""
