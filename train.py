"""Trains a GPT-2 through the latent curriculum. Read this fourth: it is one plain loop.

    locate the stage, begin it if it is new, draw a batch, accumulate, update,
    and when due: look at the numbers, evaluate, save

A batch depends on (seed, step) alone. So a run that was cut off goes on from its last checkpoint as
if nothing had been (--resume=true), and `torchrun --nproc_per_node=N train.py` cuts the same
batches into N parts.
"""

import contextlib

import torch
from tqdm import tqdm

from nanococonut import (
    batching,
    coconut,
    compiling,
    config,
    data,
    devices,
    drawing,
    optimizers,
    runs,
)
from nanococonut.config import UserError
from nanococonut.model import GPT
from nanococonut.schedule import Schedule
from nanococonut.settings import CHOICES, PRESETS, TrainConfig


def begin_stage(model: GPT, c: TrainConfig, schedule: Schedule, stage: int, special) -> list:
    """The optimizers of a new stage. Where thoughts begin, <bot> may be aligned with <eot>."""
    if c.aligned and schedule.thoughts_begin(stage):
        # Differs from the paper: the thought made at <bot> starts as what <eot> writes first.
        with torch.no_grad():
            model.wte.weight[special["bot"]] = model.wte.weight[special["eot"]]
    # Differs from the released code, which starts the optimizer anew at every epoch.
    return optimizers.make(model, c)


def accumulate(loss_of, draw: drawing.Draw, c: TrainConfig, machine: devices.Machine, fill: int):
    """Adds the gradient of this process's share of a batch to .grad. Returns (3,), see below.

    A part's mean loss is weighed by its share of the batch's supervised tokens. So parts add up to
    the mean over tokens, where a mean of means would favour short answers. Processes are averaged
    by DistributedDataParallel, hence the factor n_processes. Raises UserError without memory.
    What comes back: the loss on words, the loss that teaches thoughts, and the thoughts' length.
    """
    n_targets = sum(len(after) - 1 for group in draw.groups for _, after in group.pairs)
    n_taught = batching.n_taught(draw.groups, draw.n_thoughts)
    mine = draw.groups[machine.rank :: machine.n_processes]
    size = max(1, (c.micro_batch_size or c.batch_size) // c.questions)
    parts = [mine[i : i + size] for i in range(0, len(mine), size)]
    total = torch.zeros(3, device=machine.device)
    try:
        for i, part in enumerate(parts):
            batch = batching.collate(part, draw.n_thoughts, fill)
            # Counted on the CPU: nobody waits for the device.
            share = int((batch.targets != coconut.NOTHING).sum()) / n_targets
            taught_share = batching.n_taught(part, draw.n_thoughts) / max(1, n_taught)
            batch = machine.take(batch)
            is_last = i + 1 == len(parts)
            with contextlib.nullcontext() if is_last else machine.alone(loss_of):
                with machine.autocast():
                    loss, taught, norm = loss_of(batch)
                loss, taught = loss * share, taught * taught_share
                ((loss + draw.teaching * taught) * machine.n_processes).backward()
            norm = norm / len(parts) / machine.n_processes
            total += torch.stack([loss.detach(), taught.detach(), norm])
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            smaller = f"--micro_batch_size={max(1, size * c.questions // 2)}"
            raise UserError(f"out of memory; with fewer examples at once: {smaller}") from None
        raise
    return total


def main(c: TrainConfig) -> None:
    """Trains. Several processes take the same steps, each on its share; the first one writes."""
    machine = devices.join(c.device, c.dtype)
    machine.check(c.batch_size // c.questions)
    dataset = data.Dataset(c.task)
    problems, valid, special = dataset.split("train"), dataset.split("valid"), dataset.special
    c = runs.fit_to_data(c, problems, dataset.meta["tokenizer"])
    schedule = Schedule(c, dataset.meta["longest"])
    config.print_resolved(c)
    schedule.show()
    model = runs.starting_model(c, dataset, schedule.n_positions).to(machine.device).train()
    phases = compiling.phases() if machine.compiles(c.compile) else coconut.EAGER
    machine.introduce(model, "eager" if phases is coconut.EAGER else "compiled")
    loss_of = machine.share(compiling.Loss(model, phases))
    run = runs.Writer(c, dataset, machine, model, schedule.max_new_tokens)
    step, held = run.resume()
    progress = tqdm(total=schedule.total, initial=step, unit="step", disable=not machine.is_first)

    with runs.stop_signals() as stop:
        while step < schedule.total:
            stage, n_behind = schedule.locate(step)
            if n_behind == 0:
                held = begin_stage(model, c, schedule, stage, special)
                run.best = -1.0  # a stage is compared with itself alone
            draw = drawing.draw_batch(c, problems, schedule, special, step)
            found = accumulate(loss_of, draw, c, machine, special["eos"])
            factor = optimizers.factor(n_behind, schedule.n_steps[stage], c)
            gradient_norm = optimizers.update(model, held, c, stage, factor)
            run.note(found, gradient_norm, draw.is_scheduled)
            step += 1
            progress.update()

            due = run.due(step, n_behind == 0, step == schedule.ends[stage], stop)
            if not any(due):
                continue  # nobody looks at the device's numbers, so nobody waits for them
            run.look(step, stage, held)
            if due.logs:
                run.log_training(step, stage, factor, schedule.plans[stage])
                progress.set_postfix_str(f"stage {stage}, loss {run.last_loss:.3f}")
            if due.evaluates:
                run.evaluate(step, stage, valid, schedule.plans[stage], special)
            if due.saves:
                run.save_last(step, stage, held)
            if due.stops:
                progress.close()
                run.say_how_to_go_on(step)
                raise SystemExit(128 + due.stops)
    progress.close()
    run.finish()
    machine.leave()


if __name__ == "__main__":
    config.run(main, TrainConfig, PRESETS, CHOICES)
