"""PackNet: every weight belongs to one task; a task trains what is free, keeps its largest weights and frees the rest.

m_i in {0, 1, ..., T} is the owner of weight i, 0: free. Task t, on the weights of Linear and Conv layers:
    train   all free weights become m = t; L = CE(f(x)_t, y); weights of earlier tasks are used and do not move
    prune   per layer, of the n_t weights with m = t the k = round(p n_t) of least |w| become 0 and free (m = 0)
    retrain those that are left, after which they never move again
    infer   for task t: weights with 1 <= m <= t, the others 0
The last task keeps all it finds, unpruned. p = `--prune_percentage`, or (T - t) / (T - t + 1) with `--equal_share`, so
that all tasks own as much. Logits of a task are those of its own classes; the classifier is not pruned, and the rows
of other tasks do not move.

Biases (`--packnet_bias`) and all other parameters, which are mostly those of normalisation (`--packnet_bn`), are
learned in the first task alone (`freeze`, as published) or kept once per task. Running statistics are always per task.

Reference: Mallya & Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning".
"""

import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call

from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.fisher import sum_over_gradients
from palimpsest.models.utils.held import Held, head_rows
from palimpsest.utils import panels
from palimpsest.utils.args import add_bool, fraction, non_negative_float, positive_int
from palimpsest.utils.errors import TrainingFailed, UserError


class PackNet(ContinualModel):
    NAME = "packnet"
    COMPATIBILITY = ["task-il"]
    UNUSED = ("multi_head",)

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--prune_percentage", type=fraction, default=0.75, help="share p of a task's weights that it gives back")
        add_bool(parser, "--use_magnitude_pruning", default=True,
                 help="keep the weights of greatest |w|; off: of greatest mean |w * gradient| over the task's examples",
        )  # fmt: skip
        add("--prune_threshold", type=non_negative_float, default=0.0, help="weights of smaller |w| are given back too")
        add("--retrain_epochs", type=positive_int, help="epochs after pruning (default: half of --n_epochs, or 1)")
        add_bool(parser, "--equal_share", help="prune so that each task owns as much; in place of --prune_percentage")
        for name, what in (("bias", "biases"), ("bn", "parameters of normalisation")):
            add(f"--packnet_{name}", choices=["freeze", "per_task"], default="freeze",
                help=f"{what}: learned in the first task alone, or kept for each task")  # fmt: skip
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        if not 0 < args.prune_percentage < 1:
            raise UserError(f"--prune_percentage {args.prune_percentage:g}: expected a share above 0 and below 1")
        super().__init__(backbone, loss, args, transform, dataset)
        kinds, head = nn.Linear | nn.modules.conv._ConvNd, {id(p) for p in backbone.classifier.parameters()}
        self.heads = [name for name, p in backbone.named_parameters() if id(p) in head]
        layers = [n for n, m in backbone.named_modules() if isinstance(m, kinds) and m is not backbone.classifier]
        self.prunable = [f"{name}.weight" for name in layers]
        self.biases = [f"{name}.bias" for name in layers]
        total = sum(w.numel() for w in self.weights().values())
        self.register_buffer("owner", torch.zeros(total, dtype=torch.uint8, device=self.device))
        self.held = Held()
        self.per_task: dict[int, dict[str, Tensor]] = {}  # what each finished task keeps beside its weights

    def weights(self) -> dict[str, Tensor]:
        """The weights that can be pruned, by name."""
        return {name: self.net.get_parameter(name).detach() for name in self.prunable}

    def owners(self) -> dict[str, Tensor]:
        """Views of `owner` in the shapes of the weights."""
        weights = self.weights()
        parts = self.owner.split([w.numel() for w in weights.values()])
        return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}

    def begin_task(self, dataset):
        t = self.current_task + 1
        for name, owner in self.owners().items():
            if t > 255 or not (owner == 0).any():
                raise TrainingFailed(
                    f"packnet: no free weight is left in {name} for task {self.current_task}: raise "
                    "--prune_percentage, or take a wider network"
                )
            owner[owner == 0] = t
        self.hold()
        self.reset_optimizers()

    def hold(self) -> None:
        """Let the weights of the current task, its head and what is learned along with it move, and nothing else."""
        args, owners, movable = self.args, self.owners(), {}
        for name, parameter in self.net.named_parameters():
            if name in owners:
                movable[name] = owners[name] == self.current_task + 1
            elif name in self.heads:
                movable[name] = head_rows(parameter, self.dataset.class_index(self.current_task))
            else:
                rule = args.packnet_bias if name in self.biases else args.packnet_bn
                movable[name] = torch.tensor(self.current_task == 0 or rule == "per_task", device=self.device)
        self.held.hold(self.net, movable)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step(inputs, labels, self.opt)

    def step(self, inputs: Tensor, labels: Tensor, opt: torch.optim.Optimizer) -> Tensor:
        """One step on the current task; all weights of other tasks that are not 0 belong to earlier ones."""
        stream, task = self.dataset, self.current_task
        opt.zero_grad()
        loss = self.loss(self.net(inputs)[:, stream.class_index(task)], stream.positions(labels, task))
        loss.backward()
        self.held.step(self.net, opt)
        return loss

    def end_task(self, dataset):
        share = self.share(dataset)
        if share > 0:
            self.prune(share, dataset)
            self.hold()
            opt = self.get_optimizer()  # the moments of the first phase would move what was pruned
            for epoch in range(self.args.retrain_epochs or max(1, self.args.n_epochs // 2)):
                for inputs, labels, _ in dataset.train_loader.epoch(f"retrain {epoch}"):
                    loss = self.step(inputs, labels, opt)
                if not loss.isfinite():
                    raise TrainingFailed(
                        f"loss is {loss.item()} in retraining task {self.current_task}: try a smaller learning rate"
                    )
        others = {n: p for n, p in self.net.named_parameters() if n not in (*self.prunable, *self.heads)}
        kept = {**others, **dict(self.net.named_buffers())}
        self.per_task[self.current_task] = {name: tensor.detach().clone() for name, tensor in kept.items()}

    def share(self, dataset) -> float:
        """p for the current task; 0 for the last, where it is known to be the last."""
        n_tasks = getattr(dataset, "n_tasks", dataset.N_TASKS)  # None where tasks are handed over one by one
        if n_tasks is None and self.args.equal_share:
            raise UserError("packnet: --equal_share needs the number of tasks: give n_tasks, or drop it")
        left = n_tasks and n_tasks - self.current_task - 1
        if left == 0:
            return 0.0
        return left / (left + 1) if self.args.equal_share else self.args.prune_percentage

    @torch.no_grad()
    def prune(self, share: float, dataset) -> None:
        """Free the least important share of the current task's weights, layer by layer."""
        owners, weights = self.owners(), self.weights()
        importance = {name: w.abs() for name, w in weights.items()}
        if not self.args.use_magnitude_pruning:
            gradients = self.mean_gradients(dataset)
            importance = {name: w * gradients[name] for name, w in importance.items()}
        for name, weight in weights.items():
            mine = owners[name] == self.current_task + 1
            k = round(share * int(mine.sum()))
            gone = mine & (weight.abs() < self.args.prune_threshold)
            if k > 0:
                threshold = importance[name][mine].sort().values[k - 1]  # kthvalue is not deterministic on a GPU
                gone |= mine & (importance[name] <= threshold)
            if not gone.any():
                warnings.warn(f"packnet: nothing to prune in {name} after task {self.current_task}", stacklevel=2)
            owners[name][gone] = 0
            weight[gone] = 0

    def mean_gradients(self, dataset) -> dict[str, Tensor]:
        """sum_n |dL_n / dw| over the task's examples, by parameter; the constant 1/N has no say in a ranking."""
        classes, task = dataset.class_index(self.current_task), self.current_task

        def loss_of_one(logits: Tensor, y: Tensor) -> Tensor:
            return self.loss(logits[classes].unsqueeze(0), dataset.positions(y, task).unsqueeze(0))

        batches = ((x, y, None) for x, y in dataset.examples())
        with torch.enable_grad():
            return sum_over_gradients(self.net, batches, loss_of_one, power=1)

    def forward(self, x: Tensor, task_label: int) -> Tensor:
        kept = self.per_task.get(task_label)
        if kept is None:  # in training, or never trained: the network as it stands
            return self.net(x)
        owners = self.owners()
        usable = {
            name: torch.where((owners[name] >= 1) & (owners[name] <= task_label + 1), w, 0)
            for name, w in self.weights().items()
        }
        return functional_call(self.net, {**usable, **kept}, (x,))

    def report(self, dataset, tasks):
        owned = [int((self.owner == t + 1).sum()) for t in range(self.current_task)]
        return super().report(dataset, tasks).show(panels.capacity(owned, self.owner.numel()))
