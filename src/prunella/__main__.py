"""`python -m prunella` is `prunella`."""

from prunella.cli import main

main()
