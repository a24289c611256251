"""``python -m nbhelpers``: the command behind ``run_all.sh``; ``python -m nbhelpers answer``."""

import sys

from nbhelpers.answer.__main__ import main as answer
from nbhelpers.runner.command_line import main

if __name__ == "__main__":
    sys.exit(answer(sys.argv[2:]) if sys.argv[1:2] == ["answer"] else main())
