"""The command python -m nanococonut.bench: see lab/bench.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("nanococonut.lab.bench", run_name="__main__", alter_sys=True)
