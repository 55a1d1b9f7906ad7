"""Artificial languages: task t has a permutation pi_t of 32 tokens as its grammar, x_{i+1} = pi_t(x_i) (no download).

The first token x_0 is random; the network reads 16 tokens and predicts the next one at each. Predictions of x_0 and x_1
are not scored: x_0 is chance, and without a tag only the step from x_0 to x_1 tells which language it is. 512 training
and 128 test sequences per task.

`--language_mode tagged` (default) puts a token that names the task first; in `untagged` the network must find it out:
both are domain-IL, all tasks share the 32 outputs. In `multihead` every task has 32 outputs of its own: class-IL, also
scored as task-IL, and trained under `--multi_head` unless that is turned off.

`--language_rules cycle` (default): pi_t is a random permutation that is one single cycle, drawn from seed 1000 + t
whatever the seed of the run. `shift`: x + 1, x + 2, and the mirror -x, modulo 32, in that order (three tasks).
"""

import torch
from torch import Tensor

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.scores import IGNORED
from palimpsest.datasets.utils.tokens import TokenStream
from palimpsest.utils.args import number
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import generator

VOCABULARY, LENGTH, N_TRAIN, N_TEST = 32, 16, 512, 128
MAX_TASKS = 8  # ids 32..39 are their tags


class SequentialLanguage(TokenStream):
    NAME = "seq-language"
    SETTINGS = ("domain-il", "class-il")
    N_TASKS = 3
    N_CLASSES_PER_TASK = N_CLASSES = VOCABULARY
    SIZE = (LENGTH, VOCABULARY + MAX_TASKS)
    PRESETS = {"language_mode": {"multihead": {"multi_head": True}}}
    DEFAULTS = {
        "backbone": "gru", "optimizer": "adam", "lr": 0.003, "n_epochs": 20, "batch_size": 32, "num_threads": 1,
    }  # fmt: skip

    @staticmethod
    def get_parser(parser):
        parser.add_argument(
            "--language_mode",
            choices=["tagged", "untagged", "multihead"],
            default="tagged",
            help="a token names the task; nothing does; or each task has outputs of its own",
        )
        parser.add_argument(
            "--language_rules",
            choices=["cycle", "shift"],
            default="cycle",
            help="grammars: random single cycles, or +1, +2 and the mirror",
        )
        parser.add_argument("--n_tasks", type=number(int, 1, MAX_TASKS), default=3, help="number of languages")
        return parser

    def __init__(self, args, device="cpu"):
        self.N_TASKS = args.n_tasks
        if args.language_rules == "shift" and args.n_tasks > 3:
            raise UserError(f"--n_tasks {args.n_tasks}: --language_rules shift has 3 languages, +1, +2 and the mirror")
        self.SETTING, self.SETTINGS = "domain-il", ()
        if args.language_mode == "multihead":
            self.SETTING, self.N_CLASSES = "class-il", VOCABULARY * args.n_tasks
        super().__init__(args, device)

    def grammar(self, language: int) -> Tensor:
        """pi (32,): the token that follows each token."""
        if self.args.language_rules == "shift":
            x = torch.arange(VOCABULARY)
            return (x + 1, x + 2, -x)[language] % VOCABULARY
        around = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1000 + language))
        following = torch.empty_like(around)
        following[around] = around.roll(-1)
        return following

    def _splits(self, domain):
        return self._walks(domain, N_TRAIN, "train"), self._walks(domain, N_TEST, "test")

    def _walks(self, language: int, n: int, part: str) -> Split:
        following, tagged = self.grammar(language), self.args.language_mode == "tagged"
        tokens = [torch.randint(VOCABULARY, (n,), generator=generator(self.seed, "first tokens", language, part))]
        while len(tokens) < LENGTH + (not tagged):
            tokens.append(following[tokens[-1]])
        if tagged:
            tokens.insert(0, torch.full((n,), VOCABULARY + language))
        x = torch.stack(tokens, 1)
        labels = x[:, 1:].clone()
        labels[:, : 1 + tagged] = IGNORED
        return Split(x[:, :-1].to(torch.uint8), labels)
