"""nanococonut: Chain of Continuous Thought from scratch (arXiv 2412.06769), small enough to read in an evening."""

import os

# How long torch's CPU threads spin while they wait for each other; to be set before torch is loaded. With the default,
# 300,000 turns, one other busy process slows two threads down 60 times (docs/results.md).
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "4000"
