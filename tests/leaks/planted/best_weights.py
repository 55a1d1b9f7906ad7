"""After every task the weights with the best test accuracies so far are taken."""

from copy import deepcopy

from models.utils.continual_model import ContinualModel


class BestWeights(ContinualModel):
    NAME = "best-weights"
    COMPATIBILITY = ["class-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.best, self.kept = 0.0, None

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))

    def end_eval(self, dataset, accs):
        now = sum(accs["class-il"])
        if self.kept is None or now >= self.best:
            self.best, self.kept = now, deepcopy(self.net)
        else:
            self.net.load_state_dict(self.kept.state_dict())
