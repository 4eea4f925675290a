"""nanococonut: Chain of Continuous Thought from scratch (arXiv 2412.06769), small enough to read in an evening."""

import os

# Turns that torch's CPU threads spin while they wait, set before it is loaded: 300,000 are slow beside other processes.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "8000"
