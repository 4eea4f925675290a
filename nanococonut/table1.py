"""The command python -m nanococonut.table1: see lab/table1.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("nanococonut.lab.table1", run_name="__main__", alter_sys=True)
