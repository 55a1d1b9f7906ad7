"""ER with Asymmetric Cross-Entropy: new images compete among the classes of their task, replayed ones among all seen.

L = CE(f(x) over the classes of the task and those not seen yet, y) + CE(f(x') over all classes, y')

So the first batches of a task do not push the old classes' features away. The second term begins with the second
task, as published. In the published code the first term covers the classes present in the stream so far minus the
old ones; with a task's classes known that is the same from the task's first batches on.

Reference: Caccia et al. 2022, "New Insights on Reducing Abrupt Representation Change in Online Continual Learning",
equation 2.
"""

from palimpsest.models.utils.rehearsal import Rehearsal


class ERACE(Rehearsal):
    NAME = "er_ace"
    COMPATIBILITY = ["class-il", "task-il"]
    UNUSED = ("multi_head",)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        past = self.n_past_classes
        terms = {"ce": self.loss(self.net(inputs)[:, past:], labels - past)}
        if self.current_task > 0 and not self.buffer.is_empty():  # empty at first under --start_from
            replayed, replayed_labels = self.draw()
            terms["replay"] = self.loss(self.net(replayed), replayed_labels)
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return self.step_on(terms)
