"""Every single fault: a small sweep under a wrapper that numbers each act that leaves a process, and fails one of them.

acts.py counts and fails; sweep.py runs one case in a forked process; cases.py says what must hold after each.
`python -m tests.faults` runs all of them, a seeded sample runs in tests/test_every_fault.py.
"""
