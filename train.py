"""Trains a GPT-2 through the latent curriculum. Read this fourth: it is one plain loop.

    locate the stage, begin it if it is new, draw a batch, think forward, go backward, step,
    and when due: look at the numbers, evaluate, save

A batch depends on the seed, the step and the schedule, which a checkpoint holds. So a run that was
cut off goes on (--resume=true), on the CPU bit for bit if OMP_NUM_THREADS is set, and `torchrun
--nproc_per_node=N train.py` gives each process a share of the same batches.
"""

import contextlib
import functools

from nanococonut import batching, cli, coconut, compiling, data, device, optim
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.opening import demand_graphs, starting_model
from nanococonut.writer import Writer, stop_signals

import torch  # isort: skip - after the package, which sets how torch's CPU threads wait
from torch import Tensor  # isort: skip
from torch.nn.utils import clip_grad_norm_  # isort: skip
from tqdm import tqdm  # isort: skip


def losses(model, part, weights, forward, machine) -> tuple[Tensor, Tensor]:
    """The loss to train on, the mean on words plus the mean on next words, and what to log of it.

    That is (3,): the two means, and the thoughts' mean norm. All are times the weights (3,) of a
    micro-batch, with which those of a batch add up to its own.
    """
    with machine.autocast():
        out = forward(model, part)
        thought_norm = out.thoughts.detach().float().norm(dim=-1).mean()
        numbers = torch.stack([out.loss, out.next_loss, thought_norm]) * weights
    return numbers[0] + numbers[1], numbers.detach()


def accumulate(model, batch, c, machine, forward=coconut.forward, replay=None) -> Tensor:
    """The forward and the backward pass of this process's share of a batch: fills .grad.

    forward  coconut.forward, or the same compiled
    replay   on one GPU: the lines after it in the loop as one CUDA graph, see compiling.py
    Returns the numbers of losses(), added up over the micro-batches.
    """
    numbers = torch.zeros(3, device=machine.device)
    for part, weights in batching.micro_batches(batch, c, machine.rank, machine.n_processes):
        part = coconut.Batch(*map(machine.to_device, part))
        weights = machine.to_device(weights)
        if replay:
            numbers += replay(part, weights)
            continue
        loss, its_numbers = losses(model, part, weights, forward, machine)
        loss.backward()
        numbers += its_numbers
    machine.add_up_gradients(model)
    return numbers


def for_this_machine(c: TrainConfig, machine, model) -> dict:
    """accumulate()'s forward and replay: what a GPU needs, around the lines above."""
    forward, mode = coconut.forward, "eager"
    if machine.compiles(c.compile):
        forward = functools.partial(compiling.forward, phases=compiling.compiled())
        mode = "compiled"
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters:,} parameters on {machine.device}, {machine.dtype}, {mode}")
    if not machine.replays:
        return dict(forward=forward)
    replay = compiling.Replay(
        lambda part, weights: losses(model, part, weights, forward, machine), model
    )
    return dict(forward=forward, replay=replay)


def loop(
    c: TrainConfig, model, schedule, batch_of, forward_backward, writer, machine, stop: list
) -> None:
    """Takes the steps of the schedule.

    batch_of(step) draws a batch, forward_backward(batch) fills .grad; stop receives signals.
    """
    step, optimizers = writer.resume(schedule)
    # Timed on the last batch: graphs are whole there.
    writer.settle_threads(lambda: forward_backward(batch_of(schedule.total - 1)))
    batches = machine.ahead(batch_of, range(step, schedule.total))
    bar = dict(total=schedule.total, initial=step, unit="step", disable=not machine.is_first)
    with tqdm(**bar) as progress:
        while step < schedule.total:
            stage, n_behind = schedule.locate(step)
            # Differs from the released code, which starts the optimizer anew at every epoch.
            # In place the losses of earlier stages stay, so the optimizer goes on (in all methods).
            if step == 0 or (n_behind == 0 and c.layout == "paper"):
                optimizers = optim.make(model, c)
            numbers = forward_backward(next(batches))
            lr_factor = optim.factor(*schedule.span(step), c)
            optim.set_rates(optimizers, c, lr_factor)
            gradient_norm = clip_grad_norm_(model.parameters(), optim.max_norm(c))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            writer.keep(n_behind, torch.stack([*numbers, gradient_norm]))
            step += 1
            progress.update()
            writer.keep_pace(lambda at=step - 1: forward_backward(batch_of(at)))
            if writer.is_learned(stage == schedule.last, n_behind, numbers):
                schedule.end_stage(stage, step)
                batches = machine.ahead(batch_of, range(step, schedule.total))

            due = writer.due(step, n_behind == 0, step == schedule.ends[stage], stop)
            if not any(due):
                continue  # nothing to report, so nothing to fetch from the device
            writer.fetch(step, stage, optimizers)
            if due.logs:
                writer.log_training(step, stage, lr_factor)
                progress.set_postfix_str(f"stage {stage}, loss {writer.last_loss:.3f}")
            if due.evaluates:
                writer.evaluate(step, stage, schedule.plans[stage])
            if due.saves:
                writer.save_last(step, stage, optimizers, schedule)
            if due.signal_number:
                progress.close()
                writer.say_how_to_go_on(step)
                raise SystemExit(128 + due.signal_number)


def main(c: TrainConfig) -> None:
    """Trains. Several processes take the same steps, each on its share; the first one writes."""
    machine = device.join(c.device, c.dtype, c.n_embd)
    fewest = machine.n_processes * c.n_questions
    if c.batch_size < fewest:
        raise UserError(f"--batch_size should be at least {fewest} here")
    dataset = data.Dataset(c.task)
    problems = dataset.split("train")
    demand_graphs(c, problems)
    schedule = batching.Schedule(c, dataset.meta["longest"])
    cli.print_resolved(c, PRESETS[c.preset])
    schedule.show()
    model = starting_model(c, dataset, schedule.n_positions).to(machine.device).train()
    how = for_this_machine(c, machine, model)
    forward_backward = functools.partial(accumulate, model, c=c, machine=machine, **how)
    batch_of = functools.partial(batching.draw_batch, c, problems, schedule, dataset.special)
    writer = Writer(c, dataset, machine, model, schedule.max_new_tokens)
    with contextlib.closing(writer), stop_signals() as stop:
        loop(c, model, schedule, batch_of, forward_backward, writer, machine, stop)
    writer.finish()
    machine.leave()


if __name__ == "__main__":
    cli.run(main, TrainConfig, PRESETS, CHOICES)
