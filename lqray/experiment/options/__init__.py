"""Options of everything that a YAML chooses: a file for each section, with meaning, unit and range of each key.

A key that belongs to another name of the same section (momentum beside `name: adam`) is left out of the trial, so that
one `base` serves a sweep over names; a key that belongs to none is an error.

Every number has a range, wide enough for whatever can be computed: what lies outside fails only when its trial's turn
comes, or means nothing. Where a limit is not the method's own, its reason stands with one of `section`'s constants.
"""
