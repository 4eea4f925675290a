"""nanococonut: Chain of Continuous Thought from scratch (arXiv 2412.06769), small enough to read in an evening."""

import os
import signal
import sys
import threading
from pathlib import Path

# Turns that torch's CPU threads spin while they wait, set before it is loaded: 300,000 are slow beside other processes.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "8000"

# While one of our own commands still loads torch, Ctrl-C ends it without a traceback; config.run undoes this.
_program = Path(*sys.argv[:1]).resolve()  # of python -m it is not known yet
_is_ours = _program.is_file() and _program.parent == Path(__file__).resolve().parents[1]
_is_main = threading.current_thread() is threading.main_thread()
_is_as_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if (_is_ours or sys.argv[:1] == ["-m"]) and _is_main and _is_as_usual:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
