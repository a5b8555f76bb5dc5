"""`python -m xverse_cli`."""

from xverse_cli.main import main

main()
