"""`python -m semires`: the same as the `semires` command."""

import sys

from semires.cli import main

if __name__ == "__main__":
    sys.exit(main())
