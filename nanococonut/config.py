"""The settings of a training run, and their presets.

The comment above a setting is also its line in --help.
"""

from dataclasses import dataclass

from nanococonut.cli import demand
from nanococonut.curriculum import METHODS

MOST_POSITIONS = 10**5  # of a model


@dataclass(frozen=True)
class TrainConfig:
    """python train.py [PRESET] [--option=value ...]: trains a GPT-2 on Coconut's curriculum.

    The run is written to runs/<name>/.
    """

    # --- task and run ---
    # preset, whose values these are; options typed replace them
    preset: str = "prosqa"
    # data set to train on: the folder data/<task>/
    task: str = "prosqa"
    # folder of the run under runs/; default: task-method, with a number if that exists
    name: str = ""
    # resume the run --name from its last checkpoint
    resume: bool = False
    # random seed of the weights, the batches and dropout
    seed: int = 0

    # --- method and stages ---
    # training method: a row of the paper's Table 1
    method: str = "coconut"
    # paper: <eot> follows the thoughts, each stage has a new optimizer and its own rates (--decay);
    # in_place: the next word itself follows, earlier stages stay in the loss, one optimizer and one
    # decay serve the run, and a stage ends early when it is learned (see curriculum.py)
    layout: str = "paper"
    # optimizer steps of each stage 0..max_stage; one number serves all stages; in place a stage
    # that is learned sooner leaves its other steps to the last
    stage_steps: tuple[int, ...] = (700,)
    # number of the last stage, used if --stage_steps is a single number
    max_stage: int = 6
    # thoughts that replace each removed reasoning step
    c_thought: int = 1
    # the last stage removes all steps without adding thoughts, as in the paper's GSM8k
    extra_stage: bool = False

    # --- questions ---
    # examples per optimizer step
    batch_size: int = 128
    # 0: problems as in the file; 1: each time with new names, and facts in a new order;
    # more: so many questions about one graph, half of them random ones
    augment: int = 1
    # steps at the start of the last stage over which graphs grow to all of their facts; before it
    # they hold two chains and, with a second number, that percent of the other facts; 0: no growth
    grow: tuple[int, ...] = (0,)

    # --- optimizer ---
    # learning rate of AdamW
    lr: float = 0.0001
    # learning rate of Muon for the blocks' matrices; 0: AdamW trains them too
    muon_lr: float = 0.0
    # final share of each stage (in place, of the run) over which the rates fall to zero, after
    # 100 steps over which they rise; 0: constant rates
    decay: float = 0.0

    # --- model ---
    # weights to start from: gpt2, a run or a file, which also set the sizes; lookup: random ones
    # that look facts up (see starts.py); empty: random ones as GPT-2's
    init_from: str = ""
    # transformer blocks
    n_layer: int = 12
    # attention heads per block
    n_head: int = 12
    # embedding size (channels)
    n_embd: int = 768
    # maximum number of positions; 0: as many as the data needs
    block_size: int = 0
    # dropout probability in embeddings, attention and both residual branches
    dropout: float = 0.1

    # --- machine ---
    # device to train on; auto: cuda, else mps, else cpu
    device: str = "auto"
    # precision of arithmetic; auto: bfloat16 on cuda if --n_embd is 512 or more, else float32
    dtype: str = "auto"
    # whether to use torch.compile for the latent loop; auto: with bfloat16 on cuda and Triton
    compile: str = "auto"
    # examples per forward pass, with gradients accumulated; 0: batch_size
    micro_batch_size: int = 0

    # --- reports ---
    # steps between entries in log.csv
    log_every: int = 20
    # steps between evaluations on valid; 0: only at the end of each stage
    eval_every: int = 0
    # steps between checkpoints
    save_every: int = 500

    @property
    def less_memory(self) -> str:
        """What to type when memory is used up: fewer examples at once give the same result."""
        at_once = min(self.micro_batch_size or self.batch_size, self.batch_size)
        if at_once > self.n_questions:  # the questions about a graph stay together
            fewer = max(self.n_questions, at_once // 2)
            return f"with fewer examples at once, and the same result: --micro_batch_size={fewer}"
        smaller = "use a smaller --n_layer or --n_embd, or --device=cpu"
        return f"one graph at once is too much already: {smaller}"

    @property
    def schedule(self) -> list[int]:
        """The number of steps of each stage 0..max_stage."""
        if len(self.stage_steps) == 1:
            return list(self.stage_steps) * (self.max_stage + 1)
        return list(self.stage_steps)

    @property
    def n_questions(self) -> int:
        """Questions about each graph, once it is whole."""
        return max(1, self.augment)

    def __post_init__(self):
        sizes = "batch_size n_layer n_head n_embd c_thought"
        demand(self, sizes, lambda n: 1 <= n <= 10**5, "from 1 to 100000")
        demand(self, "log_every save_every", lambda x: x >= 1, "at least 1")
        amounts = "seed micro_batch_size eval_every lr muon_lr"
        demand(self, amounts, lambda x: 0 <= x <= 1e9, "from 0 to 1e9")
        positions = "max_stage block_size"
        demand(self, positions, lambda x: 0 <= x <= MOST_POSITIONS, "from 0 to 100000")
        demand(self, "decay dropout", lambda x: 0 <= x < 1, "at least 0 and below 1")
        demand(self, "augment", lambda n: 0 <= n <= 1000, "from 0 to 1000")
        demand(self, "grow", is_growth, "steps, or steps,percent like 4000,20")
        demand(self, "grow", lambda x: self.augment or not x[0], "0 with --augment=0")
        is_paper = self.layout == "paper"
        demand(self, "extra_stage", lambda x: is_paper or not x, "false with --layout=in_place")
        some = "0 or more each, 1 to 1e9 in all"
        demand(self, "stage_steps", lambda n: min(n) >= 0 and 1 <= sum(n) <= 10**9, some)
        heads = f"a multiple of --n_head={self.n_head}"
        demand(self, "n_embd", lambda n: n % self.n_head == 0, heads)
        groups = f"a divisor of --batch_size={self.batch_size}"
        demand(self, "augment", lambda _: self.batch_size % self.n_questions == 0, groups)


def is_growth(numbers: tuple[int, ...]) -> bool:
    """Whether numbers are steps and, perhaps, a percentage."""
    steps, *percent = numbers
    return 0 <= steps <= 10**9 and len(percent) <= 1 and all(0 <= x <= 100 for x in percent)


SHAPE = dict(n_layer=2, n_head=2, n_embd=128, dropout=0.0)
RATES = dict(lr=3e-3, muon_lr=5e-3, decay=0.7)
FROM_SCRATCH = SHAPE | RATES | dict(layout="in_place", init_from="lookup")
FROM_SCRATCH |= dict(batch_size=64, eval_every=500)
SMALL_STEPS = (2400, 200, 200, 200, 200, 200, 2600)  # at most, but for the last
STEPS = (3000, 200, 200, 200, 200, 200, 200, 7800)
PRONTOQA_STEPS = (600, 300, 200, 200, 200, 200, 200, 2100)
ARITHMETIC_STEPS = (1000, 200, 200, 200, 200, 200, 600)
PAPER_STEPS = (700, 700, 700, 700, 700, 700, 2800)  # 5 epochs a stage, the last to epoch 50
PRESETS = {
    # for tests, on any machine, in a second: the model is too small to learn
    "smoke": SHAPE
    | dict(layout="in_place", stage_steps=(4,), max_stage=2, n_embd=32, batch_size=8, lr=1e-3),
    # fair problems of 16 nodes, 13 to 15 minutes of one busy core, three seeds:
    # 96.6 % of test, both right 92.0
    "laptop": FROM_SCRATCH
    | dict(task="prosqa-small", stage_steps=SMALL_STEPS, augment=4, grow=(2000,)),
    # the default, ProsQA at the released size, 30 to 41 minutes of one busy core, three seeds:
    # 94.5 % of test, both right 92.7
    "prosqa": FROM_SCRATCH | dict(task="prosqa", stage_steps=STEPS, augment=4, grow=(4000, 20)),
    # ProntoQA, 18 minutes of one busy core, one seed: 100.0 % of test (with the start of 0f6990a)
    "prontoqa": FROM_SCRATCH | dict(task="prontoqa", stage_steps=PRONTOQA_STEPS, grow=(1500,)),
    # arithmetic, 10 minutes of one busy core, three seeds: thoughts 95.3 % of test, CoT 100.0 %
    "arithmetic": FROM_SCRATCH
    | dict(task="arithmetic", stage_steps=ARITHMETIC_STEPS, n_layer=4, n_head=4),
    # one CUDA GPU, the paper's recipe for ProsQA: 97 % there, not run here
    "gpt2": dict(task="prosqa-gpt2", init_from="gpt2", stage_steps=PAPER_STEPS, augment=0),
}
CHOICES = dict(method=tuple(METHODS), layout=("in_place", "paper"))
CHOICES |= dict(dtype=("auto", "float32", "bfloat16"), compile=("auto", "true", "false"))
