"""What holds for every configuration, step, bit and write, on cases drawn by a seed.

With -m slow on many more.
"""

import os
import random
import signal
from pathlib import Path

import pytest
import torch

import prepare
import train
from nanococonut import batching, cli, files, log, optim, runs, writer
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.curriculum import METHODS

# Of numpy's and zipfile's own parts, when a full disk interrupts them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
VALUES = {
    "method": [*METHODS],
    "stage_steps": ["1", "1,1", "0,1", "0,0,1", "2,0,1"],
    "max_stage": [0, 1, 3],
    "c_thought": [1, 2, 3],
    "extra_stage": ["true", "false"],
    "augment": [0, 1, 2, 3],
    "layout": ["in_place", "in_place", "paper"],
    "grow": ["0", "2", "2,20"],
    "batch_size": [1, 2, 6],
    "micro_batch_size": [0, 1, 4],
    "muon_lr": [0, 0.01],
    "decay": [0, 0.5],
    "n_layer": [1, 3],
    "n_head": [1, 2, 3],
    "n_embd": [8, 12],
    "block_size": [0, 8, 300],
    "dropout": [0, 0.2],
    "init_from": ["", "lookup"],
    "dtype": ["auto", "float32", "bfloat16"],
    "eval_every": [0, 1],
    "save_every": [1, 500],
}
FREE = ("method", "layout", "grow", "dropout", "muon_lr", "micro_batch_size", "decay")
SMALL = ["--train=24", "--valid=4", "--test=4", "--n_nodes=8", "--min_hops=2", "--max_hops=3"]


def prepared(*words):
    prepare.main(cli.parse(prepare.PrepareConfig, [*SMALL, *words], choices=prepare.CHOICES))


def trained(*words):
    train.main(cli.parse(TrainConfig, ["smoke", "--n_embd=8", *words], PRESETS, CHOICES))


def many(few: int, n: int):
    """Few cases always, and n where slow tests run."""
    return pytest.mark.parametrize("n", [few, pytest.param(n, marks=pytest.mark.slow)])


@many(40, 2000)
def test_every_configuration_trains_or_is_refused(workspace, monkeypatch, n):
    prepared()
    rng, n_refused = random.Random(0), 0
    for case in range(n):
        names = rng.sample([*VALUES], rng.randint(1, 12))
        words = [f"--{name}={rng.choice(VALUES[name])}" for name in names]
        monkeypatch.setattr(writer, "LEARNED", rng.choice([0, 0.1, 100]))
        monkeypatch.setattr(optim, "WARMUP", rng.choice([1, 2, 100]))
        try:
            trained(f"--name={case}", *words)
        except UserError as error:
            n_refused += 1
            assert "\n" not in str(error), words
        except Exception as error:
            raise AssertionError(f"train.py smoke {' '.join(words)}") from error
        else:
            assert torch.load(f"runs/{case}/ckpt.pt", weights_only=True)["step"] > 0, words
    assert 0 < n_refused < 0.7 * n


@many(3, 100)
def test_a_run_stopped_at_any_step_ends_as_a_whole_one(workspace, monkeypatch, n):
    prepared()
    rng, real = random.Random(0), batching.draw_batch
    for case in range(n):
        words = [f"--{name}={rng.choice(VALUES[name])}" for name in FREE]
        words.append(f"--augment={rng.choice([1, 2, 3])}")
        monkeypatch.setattr(optim, "WARMUP", rng.choice([1, 2, 100]))
        words += ["--stage_steps=4", "--max_stage=2", "--batch_size=6"]
        words.append(f"--save_every={rng.choice([3, 500])}")
        stop_at = rng.randrange(1, 12)

        def stopping(c, problems, schedule, special, step, stop_at=stop_at):
            if step == stop_at and c.name.endswith("cut") and not c.resume:
                os.kill(os.getpid(), signal.SIGINT)
            return real(c, problems, schedule, special, step)

        monkeypatch.setattr(batching, "draw_batch", stopping)
        trained(f"--name={case}-whole", *words)
        with pytest.raises(SystemExit):
            trained(f"--name={case}-cut", *words)
        stopped = torch.load(f"runs/{case}-cut/ckpt.pt", weights_only=True)["step"]
        assert stopped == stop_at + 1, words
        trained(f"--name={case}-cut", "--resume=true", *words)
        whole, cut = (
            torch.load(f"runs/{case}-{how}/ckpt.pt", weights_only=True) for how in ("whole", "cut")
        )
        assert whole["step"] == cut["step"] == 12
        for name, weight in whole["model"].items():
            about = f"{name} after step {stop_at} of {' '.join(words)}"
            assert torch.equal(weight, cut["model"][name]), about


def equal(one, other) -> bool:
    """Whether two checkpoints hold the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@many(150, 5000)
def test_a_checkpoint_with_a_flipped_bit_is_refused_or_the_same(workspace, n):
    prepared()
    trained("--name=run", "--stage_steps=1", "--max_stage=0")
    path, rng, n_refused = Path("runs/run/best.pt"), random.Random(0), 0
    whole, content = torch.load(path, weights_only=True), path.read_bytes()
    for _ in range(n):
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            state, _ = runs.load_state(path)
        except UserError:
            n_refused += 1
        else:
            assert equal(state, whole), f"byte {at} of {len(content)}, bit {bit}"
    assert n_refused > 0.8 * n  # the rest: padding and dates


class FullDisk:
    """A file on a disk with room for so many more bytes.

    All files opened with the same list share the room.
    """

    def __init__(self, file, room: list[int]):
        self.file, self.room = file, room

    def write(self, content):
        self.room[0] -= len(content)
        if self.room[0] < 0:
            self.file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return self.file.write(content)

    def writelines(self, lines):
        self.write("".join(lines))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def disk(monkeypatch, room: int) -> list[int]:
    """From now on, what files.py and log.py write goes to a disk with so much room.

    The list holds what is left.
    """
    left = [room]

    def limited(path, mode, **how):
        return FullDisk(open(path, mode, **how), left)

    monkeypatch.setattr(files, "open", limited, raising=False)
    monkeypatch.setattr(log, "open", limited, raising=False)
    return left


def contents(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).iterdir()}


@many(12, 300)
def test_a_disk_that_is_full_at_any_byte_leaves_older_or_newer_files(workspace, monkeypatch, n):
    prepared("--seed=1")
    newer = contents("data/prosqa")
    prepared()
    older, rng = contents("data/prosqa"), random.Random(0)
    size = sum(map(len, newer.values()))
    for _ in range(n):
        with monkeypatch.context() as patch:
            disk(patch, rng.randrange(size))
            with pytest.raises(
                UserError, match=r"cannot write data/prosqa/.*: No space left on device"
            ):
                prepared("--seed=1")
        left = contents("data/prosqa")
        assert left.keys() == older.keys()
        assert all(left[path] in (older[path], newer[path]) for path in left)
        prepared()


def log_of(folder: Path) -> list[str]:
    """The lines of a run's log that do not depend on the clock."""
    return [x for x in (folder / "log.csv").read_text().splitlines() if ",seconds," not in x]


@many(4, 60)
def test_a_run_whose_disk_was_full_at_any_byte_resumes(workspace, monkeypatch, n):
    prepared()
    words = ["--stage_steps=3", "--max_stage=1", "--dropout=0.1"]
    words += ["--save_every=1", "--log_every=1", "--eval_every=2"]
    with monkeypatch.context() as patch:
        left = disk(patch, 10**9)
        trained("--name=whole", *words)
        written, rng = 10**9 - left[0], random.Random(0)
    whole = torch.load("runs/whole/ckpt.pt", weights_only=True)
    for case in range(n):
        with monkeypatch.context() as patch:
            disk(patch, rng.randrange(written))
            with pytest.raises((UserError, OSError), match="No space left on device"):
                trained(f"--name={case}", *words)
        folder = Path(f"runs/{case}")
        assert not list(folder.glob("*.tmp"))
        again = ["--resume=true"] if (folder / "config.json").exists() else []
        if not again:
            folder.rmdir()  # nothing was written yet
        trained(f"--name={case}", *again, *words)
        cut = torch.load(folder / "ckpt.pt", weights_only=True)
        assert equal(whole["model"], cut["model"])
        assert log_of(folder) == log_of(Path("runs/whole"))
