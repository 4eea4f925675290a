"""Trains a GPT-2 through the latent curriculum. Read this fourth: it is one plain loop.

    locate the stage, begin it if it is new, draw a batch, accumulate, update,
    and when due: look at the numbers, evaluate, save

A batch depends on the seed, the step and the schedule, which a checkpoint holds. So a run that was
cut off resumes exactly (--resume=true), and `torchrun --nproc_per_node=N train.py` cuts the same
batches into N parts.
"""

import contextlib
import functools

from nanococonut import batching, compiling, config, data, devices, optimizers, runs
from nanococonut.coconut import Batch
from nanococonut.config import UserError
from nanococonut.devices import Machine
from nanococonut.settings import CHOICES, PRESETS, TrainConfig

import torch  # isort: skip - after the package, which sets how torch's CPU threads wait
from tqdm import tqdm  # isort: skip


def accumulate(gradients: compiling.Gradients, batch: Batch, c: TrainConfig, machine: Machine):
    """Adds the gradient of this process's share of a batch to .grad.

    A part's mean loss is weighed by its share of the batch's supervised tokens. So parts add up to
    the mean over tokens, where a mean of means would favour short answers.
    Returns (3,): the loss on words, the loss on next words, the thoughts' mean length.
    """
    n_targets, n_next = batch.n_supervised()
    most = c.micro_batch_size or c.batch_size  # examples of a part
    mine = batching.part(batch, slice(machine.rank, None, machine.n_processes))
    size = max(1, most * len(batch.prompt) // len(batch.suffix))  # prompts of a part
    starts = range(0, len(mine.prompt), size)
    total = torch.zeros(3, device=machine.device)
    for start in starts:
        part = batching.part(mine, slice(start, start + size))
        words, following = part.n_supervised()  # counted on the CPU: no wait for the device
        shares = [words / n_targets, following / max(1, n_next)]
        shares.append(1 / len(starts) / machine.n_processes)
        total += gradients(part, shares, is_last=start == starts[-1])
    return total


def main(c: TrainConfig) -> None:
    """Trains. Several processes take the same steps, each on its share; the first one writes."""
    machine = devices.join(c.device, c.dtype, c.n_embd)
    if c.batch_size // c.questions < machine.n_processes:
        raise UserError(f"--batch_size should be at least {machine.n_processes * c.questions} here")
    dataset = data.Dataset(c.task)
    problems, valid, special = dataset.split("train"), dataset.split("valid"), dataset.special
    runs.demand_graphs(c, problems)
    schedule = batching.Schedule(c, dataset.meta["longest"])
    config.print_resolved(c, PRESETS[c.preset])
    schedule.show()
    batch_of = functools.partial(batching.draw_batch, c, problems, schedule, special)  # of a step
    model = runs.starting_model(c, dataset, schedule.n_positions).to(machine.device).train()
    phases = compiling.compiled() if machine.compiles(c.compile) else compiling.EAGER
    n = sum(p.numel() for p in model.parameters())
    how = "eager" if phases is compiling.EAGER else "compiled"
    print(f"{n:,} parameters on {machine.device}, {machine.dtype}, {how}")
    gradients = compiling.Gradients(model, phases, machine)
    run = runs.Writer(c, dataset, machine, model, schedule.max_new_tokens)
    step, opts = run.resume(schedule)
    run.settle_threads(lambda: accumulate(gradients, batch_of(schedule.total - 1), c, machine))
    batches = machine.ahead(batch_of, range(step, schedule.total))
    progress = tqdm(total=schedule.total, initial=step, unit="step", disable=not machine.is_first)

    with progress, contextlib.closing(run), runs.stop_signals() as stop:
        while step < schedule.total:
            stage, n_behind = schedule.locate(step)
            if n_behind == 0:
                run.best = -1.0  # a stage is compared with itself alone
            # Differs from the released code, which starts the optimizer anew at every epoch.
            # In place the losses of earlier stages stay, so the optimizer goes on (in all rows).
            if step == 0 or (n_behind == 0 and c.layout == "paper"):
                opts = optimizers.make(model, c)
            numbers = accumulate(gradients, next(batches), c, machine)
            factor = optimizers.factor(*schedule.span(step), c)
            gradient_norm = optimizers.update(model, opts, c, factor)
            run.recent.append(torch.stack([*numbers, gradient_norm]))
            step += 1
            progress.update()
            run.keep_pace(lambda at=step - 1: accumulate(gradients, batch_of(at), c, machine))
            if run.passes(stage == schedule.last, n_behind, numbers):
                schedule.end_stage(stage, step)
                batches = machine.ahead(batch_of, range(step, schedule.total))

            is_end = step == schedule.ends[stage]
            logs, evaluates, saves, stops = run.due(step, n_behind == 0, is_end, stop)
            if not (logs or evaluates or saves or stops):
                continue  # nobody looks at the device's numbers, so nobody waits for them
            run.look(step, stage, opts)
            if logs:
                run.log_training(step, stage, factor)
                progress.set_postfix_str(f"stage {stage}, loss {run.last_loss:.3f}")
            if evaluates:
                run.evaluate(step, stage, valid, schedule.plans[stage], special)
            if saves:
                run.save_last(step, stage, opts, schedule)
            if stops:
                progress.close()
                run.say_how_to_go_on(step)
                raise SystemExit(128 + stops)
    run.finish()
    machine.leave()


if __name__ == "__main__":
    config.run(main, TrainConfig, PRESETS, CHOICES)
