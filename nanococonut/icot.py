"""iCoT's schedule [Deng24]: the chain is removed token by token, from the left."""

import math
import random


def n_removed_tokens(stage: int, max_stage: int, longest_chain: int, progress: float) -> int:
    """Tokens removed after a share `progress` (0 to 1) of a stage.

    The last stage removes no tokens, but all steps.

    >>> [n_removed_tokens(stage, 3, longest_chain=10, progress=0.3) for stage in (0, 1, 2)]
    [0, 2, 6]
    """
    # Differs from the paper of iCoT [Deng24], which removes 8 tokens per epoch and resets AdamW
    # each time.
    if not 0 < stage < max_stage:
        return 0
    return 1 + math.floor((longest_chain - 1) * (stage - 1 + progress) / (max_stage - 1))


def remove(rest: list[int], n_tokens: int, n_answer: int, rng: random.Random | None) -> list[int]:
    """A chain and its answer without their first n_tokens; the answer's n_answer always stay.

    With rng, a few more tokens are sometimes removed, to prepare for the next removal: "removal
    smoothing".

    >>> remove([1, 2, 3, 4, 5], n_tokens=2, n_answer=1, rng=None), remove([1, 2, 3], 9, 1, None)
    ([3, 4, 5], [3])
    """
    if n_tokens and rng:
        # j more with probability proportional to exp(-4 j) [Deng24]
        n_tokens += math.floor(rng.expovariate(4.0))
    return rest[min(n_tokens, len(rest) - n_answer) :]
