"""`python -m lqray` is `lqray`."""

from lqray.cli import main

main()
