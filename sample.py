"""A trained run answers one question, and shows what its thoughts lean to.

    python sample.py --latent=2                     the newest run, first question of its test split, two thoughts
    python sample.py prosqa-coconut --index=7
    python sample.py --question="Tom is a lempus. Every lempus is a rempus. Max is a impus. Is Tom a impus or rempus?"

A thought is a vector; read through the output head it leans to words. That is a reading, not its meaning.
"""

from dataclasses import dataclass

import torch

from nanococonut import coconut, config, data, evaluate
from nanococonut.config import UserError
from nanococonut.curriculum import Example


@dataclass(frozen=True)
class SampleConfig:
    """python sample.py [RUN] [--option=value ...]: a trained run answers one question."""

    run: str = ""  # name or path of a run; default: the newest
    question: str = ""  # a question of your own; default: one of the run's data
    split: str = "test"  # split the question is taken from
    index: int = 0  # which question of the split, from 0
    latent: int = -1  # number of thoughts; -1: as many as in training
    words: int = 4  # words shown for each thought
    checkpoint: str = "best"  # which checkpoint of the run
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu


@torch.no_grad()
def readings(run: evaluate.Run, example: Example, p, n_words: int) -> list[str]:
    """For each thought the words it leans to, with their probabilities, and its norm."""
    (ids,), _ = evaluate.prompts([example], p, run.special)
    prompt, length = torch.tensor([ids], device=run.device), torch.tensor([len(ids)], device=run.device)
    hidden, cache = coconut.prefill(run.model, prompt, length)
    thoughts, _ = coconut.think(run.model, hidden, length, cache, p.n_thoughts)
    lines = []
    for thought, probabilities in zip(thoughts[0], run.model.logits(thoughts)[0].softmax(-1), strict=True):
        top = probabilities.topk(n_words)
        words = [
            " ".join(text.split()) or repr(text) for text in map(run.encoding.decode, top.indices[:, None].tolist())
        ]
        shown = ", ".join(f"{word} {value:.2f}" for word, value in zip(words, top.values.tolist(), strict=True))
        lines.append(f"{shown}   (norm {thought.norm():.1f})")
    return lines


def main(c: SampleConfig) -> None:
    run = evaluate.Run(c.run, c.checkpoint, c.device)
    if not 1 <= c.words <= run.encoding.n_vocab:
        raise UserError(f"--words={c.words} should be from 1 to {run.encoding.n_vocab}")
    row = None
    if c.question:
        examples, i = data.Split(run.encoding, [{"question": c.question, "steps": [], "answer": "?"}]), 0
    else:
        examples, i = run.split(c.split), c.index
        if not 0 <= i < len(examples):
            raise UserError(f"--index={i}: {c.split} has questions 0 to {len(examples) - 1}")
        row = examples.rows[i]
    example = examples.example(i)
    p = run.plan_for(None if c.latent < 0 else c.latent)
    print(f"{run.folder.name}: {run.config['method']}, stage {run.stage}, {p.n_thoughts} thoughts", end="")
    print("" if p is run.plan else f" instead of the {run.plan.n_thoughts} of training")
    print(f"\n{examples.rows[i]['question']}\n")
    (ids,) = evaluate.answer(run.model, [example], p, run.special, run.data["max_new_tokens"])
    if p.n_thoughts:
        for k, line in enumerate(readings(run, example, p, c.words), start=1):
            print(f"  thought {k}  {line}")
        print()
    text = run.encoding.decode(ids)
    print(text)
    if row is not None:
        right = evaluate.is_right(text, row)
        print(f"\n{'right' if right else 'wrong: expected ' + row['answer']}; the chain is: {' '.join(row['steps'])}")


if __name__ == "__main__":
    config.run(main, SampleConfig, choices=evaluate.CHOICES)
