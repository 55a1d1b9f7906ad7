"""Balanced EWC stage by stage from Python."""

import pytest
import torch

from palimpsest.backbone.multitask import BalancedMultiTaskModel
from palimpsest.utils.check.cases import vision_folder
from palimpsest.utils.criterion import of_run
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.balanced_learner import BalancedContinualLearner
from tests.models.helpers import finished

OPTIONS = {
    "vision_items": "digits", "vision_size": 32, "vision_subset": 20, "seg_classes": "binary", "batch_size": 8,
    "n_epochs": 2, "device": "cpu", "n_fisher": 8, "probe_size": 8, "finetune_steps": 10, "bn_policy": "shared",
    "tolerance": 0.1,
}  # fmt: skip


def options() -> dict:
    return {**OPTIONS, "base_path": vision_folder()}


def learner_of(model=None, **more) -> BalancedContinualLearner:
    return BalancedContinualLearner(model, num_threads=1, **options(), **more)


def test_it_ends_where_the_runner_does():
    learner = learner_of(learning_rate=0.01)
    verdicts = learner.run()
    argv = [str(part) for option, value in options().items() for part in (f"--{option}", value)]
    exp = finished("balanced-ewc", *argv, "--lr", "0.01", dataset="seq-vision-mini")
    assert torch.equal(learner.model.net.get_params(), exp.model.net.get_params())
    assert learner.evaluate_all() == dict(zip(learner.tasks, exp.run.history[-1].scores["task-il"], strict=True))
    assert [(v.task, v.baseline, v.achieved) for v in verdicts] == [
        (v.task, v.baseline, v.achieved) for v in of_run(exp.run)
    ]
    # The last task is judged by what it was before the fine-tuning, too.
    assert exp.model.finetuned and verdicts[-1].baseline == exp.run.history[-2].scores["task-il"][-1]
    assert learner.model.finetuned and exp.model.finetuned


def test_nothing_is_fine_tuned_against_the_callers_will():
    learner = learner_of(finetune=False)
    assert len(learner.run()) == 3 and not learner.model.finetuned
    with pytest.raises(UserError, match="finetune=True"):
        learner.finetune_if_needed()


def test_a_network_of_another_policy_is_refused():
    with pytest.raises(UserError, match="bn_policy 'shared': the network has 'groupnorm'"):
        learner_of(BalancedMultiTaskModel(5, 5, 5, trunk="small", bn_policy="groupnorm"))


def test_stages_come_in_the_order_of_the_stream():
    net = BalancedMultiTaskModel(5, 5, 5, trunk="small", bn_policy="shared")
    learner = learner_of(net, vision_order="det,cls,seg")
    assert learner.model.net is net and learner.tasks == ["det", "cls", "seg"] and learner.check_forgetting() == []
    with pytest.raises(UserError, match="the next task is det"):
        learner.train_stage("seg")
    scores = learner.train_stage("det")
    assert list(scores) == learner.tasks and [v.delta for v in learner.check_forgetting()] == [0]
    with pytest.raises(UserError, match="all stages"):
        learner.finetune_if_needed()
