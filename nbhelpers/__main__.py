"""``python -m nbhelpers``: the command behind ``run_all.sh``, and the command ``answer``."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:  # imported only then: it takes a second
        from nbhelpers.answer.__main__ import main

        sys.exit(main(sys.argv[2:]))
    from nbhelpers.runner.command_line import main

    sys.exit(main())
