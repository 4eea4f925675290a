"""nanococonut: Chain of Continuous Thought from scratch (arXiv 2412.06769), read in an evening."""

import os
import signal
import sys
import threading
from pathlib import Path

# Turns that torch's CPU threads spin while they wait, set before torch is loaded. Its own 300,000
# are slow beside other processes.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "8000"

# While one of our own commands still loads torch, Ctrl-C ends it without a traceback; cli.run
# undoes this.
_program = Path(*sys.argv[:1]).resolve()  # of python -m it is not known yet
_is_ours = _program.is_file() and _program.parent == Path(__file__).resolve().parents[1]
_is_module = sys.argv[:1] == ["-m"]
_is_main_thread = threading.current_thread() is threading.main_thread()
_is_pythons_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if (_is_ours or _is_module) and _is_main_thread and _is_pythons_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
