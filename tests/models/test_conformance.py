"""Every file of models/ passes the conformance suite in every setting it lists; so do plain method files written
elsewhere.
"""

from functools import partial
from pathlib import Path

import pytest
import torch

from palimpsest.utils import registry
from palimpsest.utils.check import case_runs, cases, conformance
from palimpsest.utils.check.sync import cuda_waits_are_errors
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.experiment import build

# These are checked in every setting but vision; the others by default in their first setting, in all with `-m slow`.
EVERYWHERE = {"sgd", "er", "derpp", "ewc_on", "pr_bbb", "joint"}
# Resumed in another process, in which hashes of texts differ; the others in this one.
ELSEWHERE = {"er", "ewc_on", "packnet"}


CASES = [
    pytest.param(
        case,
        marks=[] if i == 0 or (model in EVERYWHERE and case.setting != "vision") else pytest.mark.slow,
        id=f"{model}-{case.setting}",
    )
    for model in registry.names("model")
    for i, case in enumerate(cases.cases(model))
]
PLAIN = sorted((Path(__file__).parent / "mammoth_style").glob("[a-z]*.py"))


def problems(case: cases.Case) -> dict[str, str]:
    """Name of each check that fails: what it says."""
    found = {}
    for check in conformance.CHECKS:
        here = check is conformance.resumes_exactly and case.model not in ELSEWHERE  # another process costs seconds
        found[check.__name__] = conformance.problem_with(case, partial(check, elsewhere=False) if here else check)
    return {name: problem for name, problem in found.items() if problem is not None}


@pytest.mark.parametrize("case", CASES)
def test_methods(case):
    assert not problems(case)


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_plain_method_files_run_unmodified(path):
    """They call `.item()`, which costs time, and are resumed exactly all the same."""
    assert problems(cases.cases(str(path))[0]).keys() == {"observe_never_waits"}


def broken(tmp_path: Path, observe: str, init: str = "", hooks: str = "", compatibility="['class-il']") -> cases.Case:
    path = tmp_path / "broken.py"
    path.write_text(f"""
import torch
from models.utils.continual_model import ContinualModel

class Broken(ContinualModel):
    NAME = "broken"
    COMPATIBILITY = {compatibility}

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        {init or "pass"}

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        {observe}
{hooks}
""")
    return cases.Case(str(path), "class-il")


STEP = "self.opt.zero_grad(); loss = self.loss(self.net(inputs), labels); loss.backward(); self.opt.step()"


@pytest.mark.parametrize(
    "check, observe, init, hooks, words",
    [
        ("learns", "return self.loss(self.net(inputs), labels)", "", "", "does observe step the optimiser"),
        ("losses_are_reported", STEP + "; return None", "", "", "observe returned None"),
        ("losses_are_reported", STEP + "; return loss.repeat(2)", "", "", "shape \\(2,\\)"),
        ("observe_never_waits", STEP + "; return loss.item()", "", "", "item at broken.py"),
        ("observe_never_waits", STEP + "; x = 1 if loss > 0 else 2; return loss", "", "", "__bool__ at broken.py"),
        ("observe_never_waits", STEP + "; inputs[labels == 1]; return loss", "", "", "boolean-mask indexing"),
        ("same_seed_same_result", "import os; inputs = inputs * os.urandom(1)[0] / 255; " + STEP + "; return loss", "",
         "", "two runs"),
        ("the_stream_is_left_alone", "inputs.mul_(0.5); " + STEP + "; return loss", "", "", "in place"),
        ("every_term_reaches_a_weight", "self.opt.zero_grad(); loss = self.loss(self.net(inputs), labels); "
         "loss = loss + 0.1 * self.net.get_params().detach().square().sum(); loss.backward(); self.opt.step(); "
         "return loss", "", "", "added in broken.py"),
        ("resumes_exactly", "N.append(1); inputs = inputs / len(N); " + STEP + "; return loss",
         "globals().__setitem__('N', [])", "", "global N was changed"),
        ("resumes_exactly", "import utils; utils.n = getattr(utils, 'n', 0) + 1; inputs = inputs / utils.n; " + STEP
         + "; return loss", "", "", "globals, closures or files"),
        ("resumes_exactly", "inputs = inputs / (1 + hash('a') % 97); " + STEP + "; return loss", "", "", "resumed"),
        ("resumes_exactly", STEP + "; return loss", "",
         "    def begin_task(self, dataset):\n        self.draws = (x for x in (1, 2))",
         "attribute 'draws' of broken \\(a generator\\)"),
        ("looking_changes_nothing", STEP + "; return loss", "self.looks = 0",
         "    def forward(self, x):\n        self.looks += not self.training\n        return self.net(x)",
         "more often changed"),
        ("evaluation_leaves_no_trace", STEP + "; return loss", "self.register_buffer('n', torch.zeros(()))",
         "    def forward(self, x):\n        self.n += 1\n        return self.net(x)", "evaluation changed model.n"),
    ],
)  # fmt: skip
def test_the_suite_catches(tmp_path, check, observe, init, hooks, words):
    case = broken(tmp_path, observe, init, hooks)
    with pytest.raises((cases.Failure, UserError), match=words):
        getattr(conformance, check)(case)


def test_an_option_without_help_is_caught(tmp_path):
    hooks = """
    @staticmethod
    def get_parser(parser):
        parser.add_argument("--zeta", type=float, default=1)
        return parser
"""
    with pytest.raises(cases.Failure, match="--zeta has no help text"):
        conformance.options_are_documented(broken(tmp_path, STEP + "; return loss", "", hooks))


def test_check_prints_plain_words(tmp_path, capsys):
    case = broken(tmp_path, STEP + "; return loss.item()")
    assert not conformance.check_and_print(case.model)
    out = capsys.readouterr().out
    words = ["broken on seq-digits", "FAIL", "return the loss itself", "1 check(s) failed"]
    assert all(part in out for part in words)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", registry.names("model"))
def test_no_synchronisation_on_a_gpu(model):
    from tests.models.helpers import first_batch

    case = cases.cases(model)[0]
    config = case.config()
    config.args.device = "cuda"
    exp = build(config)
    later = case.setting in ("class-il", "vision") and not exp.model.JOINT
    method, batch = first_batch(exp, task=int(later))
    method.meta_observe(*batch, 0)
    with cuda_waits_are_errors():
        for _ in range(3):
            method.meta_observe(*batch, 0)


def test_differences_are_named_within_tuples_and_lists():
    a, b = ({"pictures": [(1, [{"x": torch.full((2,), value)}])]} for value in (1.0, 2.0))
    assert case_runs.differing_entries(a, b) == ["pictures[0][1][0].x"] and not case_runs.differing_entries(a, a)
