"""Figures of records: one file for each kind."""
