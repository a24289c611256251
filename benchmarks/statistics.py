"""Do the intervals and p-values hold what they say? Runs simulated_statistics.py, which says how.

Libraries that other scripts of this folder import want Python's own module of this file's name, and
find this one first: to them it gives Python's.
"""

import importlib.util
import sys
import sysconfig
from pathlib import Path

if __name__ == "statistics":
    own = Path(sysconfig.get_path("stdlib")) / "statistics.py"
    spec = importlib.util.spec_from_file_location("statistics", own)
    sys.modules["statistics"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["statistics"])

if __name__ == "__main__":
    from simulated_statistics import main

    main()
