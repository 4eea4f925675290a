"""The command python -m nanococonut.probe: see lab/probe.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("nanococonut.lab.probe", run_name="__main__", alter_sys=True)
