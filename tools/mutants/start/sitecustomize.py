"""Puts the probes in place in a Python that a test starts anew: recorder.py names this folder.

Rule of this file: it runs inside other people's programs, so it leaves no trace in them.
"""

import os
import sys
from pathlib import Path

if "MUTANTS_REACH" in os.environ:
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tools.mutants import probes

    del sys.path[0]
    probes.install()
