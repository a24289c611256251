"""``python -m nbhelpers``: the command behind ``run_all.sh``."""

import sys

from nbhelpers.runner.command_line import main

if __name__ == "__main__":
    sys.exit(main())
