"""Builds lqray._native when it exists; everything else about the package is in pyproject.toml."""

from setuptools import setup

setup()
