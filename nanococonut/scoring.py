"""Whether an answer is right, and how sure a share of right answers is."""

import math


def final_answer(text: str) -> str:
    """The text after the last "#", without commas [ref run.py].

    >>> final_answer("Tom is a lempus.\\n### Tom is a rempus.")
    'Tom is a rempus.'
    >>> final_answer("<<2*3=6>>\\n### 1,200")
    '1200'
    """
    return text.rpartition("#")[2].replace(",", "").strip()


def is_right(text: str, row: dict) -> bool:
    """Whether a text ends in the row's answer, word for word: the paper's accuracy counts these."""
    return final_answer(text) == final_answer(row["answer"])


def matching_steps(text: str, row: dict, hidden: bool = False) -> tuple[int, int]:
    """How many written steps are the row's, word for word, and how many are written.

    They are aligned at the answer, because first steps may be hidden: then a first line that begins
    as no step does is the end of a hidden one, and does not count.

    >>> row = {"steps": ["<<1+2=3>>", "<<3*2=6>>"], "answer": "6"}
    >>> matching_steps("<<1+1=2>>\\n<<3*2=6>>\\n### 6", row)
    (1, 2)
    >>> matching_steps("3>>\\n<<3*2=6>>\\n### 6", row, hidden=True)
    (1, 1)
    >>> matching_steps("3>>\\n<<3*2=6>>\\n### 6", row)
    (1, 2)
    >>> matching_steps("### 6", row)
    (0, 0)
    """
    written = text.rpartition("###")[0].split("\n")[:-1]
    beginnings = {step[:2] for step in row["steps"]}
    if hidden and written and written[0][:2] not in beginnings:
        written = written[1:]
    pairs = zip(reversed(written), reversed(row["steps"]), strict=False)
    matching = [step for step, expected in pairs if step == expected]
    return len(matching), len(written)


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of the proportion n_right / n [Wilson 1927]."""
    p = n_right / n
    z = 1.959964  # the normal distribution's 97.5 % quantile
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
