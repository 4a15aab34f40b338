"""`python -m garrison`."""

from garrison.cli import main

main()
