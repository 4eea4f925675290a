"""What a model answers to many examples, batched by length, and how often it is right."""

from nanococonut import batching, coconut, data
from nanococonut.config import UserError
from nanococonut.curriculum import Example, Plan, arrange
from nanococonut.model import GPT

N_EVAL = 300  # questions of valid that training looks at, at most: ProsQA's whole split


def prompts(examples: list[Example], plan: Plan, special: dict[str, int]) -> tuple[list[list[int]], int | None]:
    """What stands before the thoughts, and the id that ends them: arrange() without what is to be generated."""
    if plan.markers:
        return [arrange(example, plan, special)[0] for example in examples], special["eot"]
    return [example.question for example in examples], None


def answer(model: GPT, examples, plan: Plan, special, max_new_tokens: int, batch_size=250, change=None):
    """The ids a model writes for each example, without <eos>; change as in coconut.generate. Raises UserError."""
    rows, eot = prompts(examples, plan, special)
    n_markers = 0 if eot is None else 1
    need, room = max(map(len, rows)) + plan.n_thoughts + n_markers + max_new_tokens, model.config.block_size
    if need > room:
        raise UserError(f"{need} tokens exceed the model's {room} positions; train with --block_size={need}")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # rows of like length together: little padding
    answers, was_training, device, eos = {}, model.training, model.wte.weight.device, special["eos"]
    model.eval()
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        length = batching.lengths([rows[i] for i in chosen]).to(device)
        prompt = batching.pad([rows[i] for i in chosen], eos).to(device)
        written = coconut.generate(model, prompt, length, plan.n_thoughts, eot, eos, max_new_tokens, change)
        answers |= zip(chosen, written, strict=True)
    model.train(was_training)
    return [answers[i] for i in range(len(rows))]


def accuracy(model: GPT, split: data.Split, plan: Plan, special, max_new_tokens: int) -> dict[str, float]:
    """On up to N_EVAL problems of a split: the share answered right, and of first written steps that are facts."""
    rows = split.rows[:N_EVAL]
    ids = answer(model, [split.example(i) for i in range(len(rows))], plan, special, max_new_tokens)
    texts = split.encoding.decode_batch(ids)
    metrics = {"accuracy": sum(map(data.is_right, texts, rows)) / len(texts)}
    shortest = min(len(row["steps"]) for row in rows)
    if split.graphs and plan.n_removed < shortest and not plan.n_tokens:
        metrics["first_step_is_fact"] = sum(map(data.starts_with_fact, texts, rows)) / len(texts)
    return metrics
