"""nanococonut: Chain of Continuous Thought from scratch (arXiv 2412.06769), small enough to read in an evening."""
