"""PAH, prototype-augmented hypernetworks: learnable prototype images, one row e_t per task, tell a hypernetwork H
which head to make.

    f(x|t) = phi(x) H(e_t)^T                               phi the backbone; no bias anywhere
    L_hm = CE(f(x|t), y)                                   current task t
    L_sm = w_sm sum_{j<t} mean_B KD(f(x|j), f^(x|j))       old heads on current images
    L_sp = w_sp sum_{j<t} mean_C KD(f(p_j|j), f^(p^_j|j))  old prototypes, as images and through H as heads
    L_hp = w_hp CE(f(p_t|t), [0..C-1])                     current prototypes (off by default)

f^ is the network before task t, p_j the C images of s x s that make up e_j.

Each step: one update of everything by L_hm + L_sm, then one of the prototypes alone by L_sp + L_hp. KD has
temperature tau and the factor tau^2. Scored with the task given (task-IL).

The default is a clean version of the algorithm: one parameter per task, a second optimiser that sees L_sp + L_hp
only, BatchNorm statistics untouched by prototypes, evaluation with running statistics. `--pah_preset reference`
behaves as the authors' released code does, `paper-formula` follows the formulas of the poster; docs/pah.md lists
the differences.

Reference: "Prototype Augmented Hypernetworks for Continual Learning", CVPR 2025 workshops, arXiv 2505.07450.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.backbone.utils.batchnorm import batchnorm_mode
from palimpsest.models.utils.generated_heads import GeneratedHeads, task_logits
from palimpsest.utils.args import add_bool, non_negative_float, non_negative_int, positive_float, positive_int
from palimpsest.utils.distillation import kd
from palimpsest.utils.errors import UserError
from palimpsest.utils.leaks.kinds import BATCH, LATER
from palimpsest.utils.randomness import generator, permutation, seed_of

# First row and column of the released code's crop windows, centred for 32 x 32 images only.
REFERENCE_WINDOWS = {5: 13, 10: 11, 16: 8, 20: 6, 30: 1}


class PAH(GeneratedHeads):
    NAME = "pah"
    UNUSED = ("lr", "optimizer", "optim_args", "optim_wd", "optim_mom", "optim_nesterov", "clip_grad", "multi_head")
    PRESETS = {
        "pah_preset": {
            "reference": {
                "pah_hidden": 16, "pah_layers": 1,
                "pah_proto_size": 10, "pah_proto_init": "image", "pah_crop": "reference",
                "pah_w_sm": 0.5, "pah_w_sp": 1.0, "pah_w_hp": 0.0, "pah_temp": 2.0,
                "pah_kl": "student", "pah_reduce": "sum", "pah_sp_classes": "mean",
                "lr_proto": 1e-3, "lr_backbone": 1e-4, "lr_hyper": 1e-3, "pah_wd": 0.01,
                "pah_leak": True, "pah_dense": True, "pah_test_bn": "batch", "pah_proto_bn": "batch",
                "holdout": 10.0, "normalize": "half", "augment": False, "eval_batch_size": 64,
            },
            "paper-formula": {"pah_kl": "teacher", "pah_reduce": "mean", "pah_sp_classes": "sum"},
        }
    }  # fmt: skip

    @staticmethod
    def get_parser(parser):
        # fmt: off
        add = parser.add_argument
        add("--pah_preset", choices=["clean", "reference", "paper-formula"], default="clean",
            help="clean algorithm, the authors' released code and protocol, or the poster's formulas")
        add("--pah_hidden", type=positive_int, default=16, help="width h of the hypernetwork")
        add("--pah_layers", type=non_negative_int, default=1, help="hidden-to-hidden layers L of the hypernetwork")
        add("--pah_proto_size", type=positive_int, default=10, help="side s of a prototype image")
        add("--pah_proto_init", choices=["image", "resize", "gauss"], default="image",
            help="start of a prototype: crop of one training image per class, that image resized, or N(0.5, 0.1^2)")
        add("--pah_crop", choices=["center", "reference"], default="center",
            help="where to crop: the centre, or the released code's windows, which are centred for 32x32 images only")
        add("--pah_w_sm", type=non_negative_float, default=3.0, help="weight of old heads' distillation on images")
        add("--pah_w_sp", type=non_negative_float, default=0.05, help="weight of old prototypes' distillation")
        add("--pah_w_hp", type=non_negative_float, default=0.0, help="weight of the prototypes' own cross-entropy")
        add("--pah_temp", type=positive_float, default=2.0, help="temperature tau")
        add("--pah_kl", choices=["student", "teacher"], default="student",
            help="KL(student || teacher) or KL(teacher || student)")
        add("--pah_reduce", choices=["sum", "mean"], default="sum", help="over old tasks")
        add("--pah_sp_classes", choices=["sum", "mean"], default="mean", help="over the prototypes of a task in L_sp")
        add("--lr_proto", type=positive_float, default=1e-3, help="learning rate of the prototypes")
        add("--lr_backbone", type=positive_float, default=1e-3, help="learning rate of the network; 1e-4 if pretrained")
        add("--lr_hyper", type=positive_float, default=1e-4, help="learning rate of the hypernetwork")
        add("--pah_wd", type=non_negative_float, default=0.0, help="AdamW's weight decay, on everything")
        add_bool(parser, "--pah_leak", help="the second optimiser also applies the main loss's prototype gradient")
        add_bool(parser, "--pah_dense", help="one parameter for the prototypes of all tasks, made before the first")
        add("--pah_test_bn", choices=["run", "batch"], default="run",
            help="BatchNorm at test time: running statistics, or those of the test batch (transductive)")
        add("--pah_proto_bn", choices=["run", "batch"], default="run",
            help="BatchNorm of prototype passes: running statistics, or those of the C prototypes of a task")
        # fmt: on
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if len(dataset.SIZE) != 3:
            raise UserError(f"pah learns prototypes that are images, {dataset.NAME} holds none: choose another stream")
        self.channels, *size = dataset.SIZE
        s = args.pah_proto_size
        fits = REFERENCE_WINDOWS.get(s, min(size)) + s <= min(size)
        if args.pah_crop == "reference" and args.pah_proto_init == "image" and not fits:
            raise UserError(
                f"--pah_crop reference knows windows of {', '.join(map(str, REFERENCE_WINDOWS))} pixels in 32x32: "
                f"--pah_proto_size {s} does not fit {size[0]}x{size[1]} images; use --pah_crop center"
            )
        self.make_hypernetwork(self.cpt * args.pah_proto_size**2, args.pah_hidden, args.pah_layers)
        self.register_buffer("teacher_prototype_logits", None)
        self.reset_optimizers()

    def reset_optimizers(self):
        args = self.args
        groups = self.parameter_groups(args.lr_proto)
        self.opt = torch.optim.AdamW(groups, weight_decay=args.pah_wd, fused=True)
        prototypes = dict(groups[0], params=list(self.embeddings))
        self.opt_proto = torch.optim.AdamW([prototypes], weight_decay=args.pah_wd, fused=True)

    # ---- prototypes

    def prototype_positions(self, data) -> Tensor:
        """Which example of each class (C,) in a task's data becomes its prototype image: a function of the seed."""
        chosen = []
        for c in data.targets.unique().tolist():
            rows = (data.targets == c).nonzero().squeeze(1)
            chosen.append(rows[permutation(len(rows), seed_of(self.args, "data"), "prototype", c)[0]])
        return torch.stack(chosen)

    def training_rows(self, data):
        """All but the prototype images."""
        keep = torch.ones(len(data), dtype=torch.bool, device=data.rows.device)
        keep[self.prototype_positions(data)] = False
        return keep.nonzero().squeeze(1)

    def initial_prototypes(self, dataset, task: int) -> Tensor:
        """e_t (P,) before training: C images of s x s, from one normalised training image per class, or Gaussian."""
        s, how = self.args.pah_proto_size, self.args.pah_proto_init
        if how == "gauss":
            noise = torch.randn(self.cpt * s * s, generator=generator(seed_of(self.args, "init"), "prototype", task))
            return (0.5 + 0.1 * noise).to(self.device)
        data = dataset.task_data(task)
        raw = data.data[self.prototype_positions(data)].to(self.device)
        grey = self.normalization_transform(raw).mean(1, keepdim=True)
        if how == "resize" or min(grey.shape[-2:]) < s:
            grey = F.interpolate(grey, (s, s), mode="bilinear", antialias=True)
        height, width = grey.shape[-2:]
        top, left = (height - s) // 2, (width - s) // 2
        if self.args.pah_crop == "reference" and how == "image":
            top = left = REFERENCE_WINDOWS[s]
        return grey[:, 0, top : top + s, left : left + s].flatten()

    def prototype_logits(self, net: nn.Module, prototypes: Tensor, heads: Tensor) -> Tensor:
        """f(p_j|j) for k tasks: prototypes (k, P) as images under their own heads (k, C, F) -> (k, C, C)."""
        s = self.args.pah_proto_size
        images = prototypes.reshape(-1, 1, s, s).expand(-1, self.channels, -1, -1)
        if self.net.input_size is not None:
            images = F.interpolate(images, self.net.input_size[1:], mode="bilinear")
        by_batch = self.args.pah_proto_bn == "batch"
        with batchnorm_mode(net, batch_statistics=by_batch):
            # Batch statistics are those of one task's prototypes; with running ones all tasks share a pass.
            parts = images.split(self.cpt) if by_batch else (images,)
            features = torch.cat([net.features(part) for part in parts])
        return torch.einsum("kif,kcf->kic", features.view(len(heads), self.cpt, -1), heads)

    # ---- learning

    def begin_task(self, dataset):
        if not self.args.pah_dense:
            new = [self.initial_prototypes(dataset, t) for t in range(len(self.embeddings), self.current_task + 1)]
        elif not len(self.embeddings):
            new = [torch.stack([self.initial_prototypes(dataset, t) for t in range(self.n_tasks)])]
        else:
            new = []
        for prototypes in new:
            self.embeddings.append(nn.Parameter(prototypes))
            for optimizer in (self.opt, self.opt_proto):  # fresh moments for a fresh row
                optimizer.param_groups[0]["params"].append(self.embeddings[-1])
        if self.current_task > 0:
            self.remember()
            with torch.no_grad():
                rows = self.rows(self.current_task)
                self.teacher_prototype_logits = self.prototype_logits(self.teacher.copy, rows, self.teacher_heads)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        t, args = self.current_task, self.args
        self.opt.zero_grad()
        logits = task_logits(self.net.features(inputs), self.heads(t + 1))
        terms = {"hm": self.loss(logits[t], labels - self.n_past_classes)}
        if t > 0 and args.pah_w_sm > 0:
            with torch.no_grad():
                taught = task_logits(self.teacher.copy.features(inputs), self.teacher_heads)
            terms["sm"] = args.pah_w_sm * self.over_tasks(kd(logits[:t], taught, args.pah_temp, args.pah_kl).mean(1))
        main = sum(terms.values())
        main.backward()
        self.opt.step()
        terms |= self.step_prototypes(t)
        return {"loss": main, **terms}

    def step_prototypes(self, t: int) -> dict[str, Tensor]:
        """The second update: L_sp + L_hp with the updated network, on the prototypes alone."""
        args = self.args
        terms = self.prototype_losses(t)
        if not args.pah_leak:  # else the main loss's gradients, still there after its step, are applied once more
            for parameter in self.embeddings:
                parameter.grad = None
        if terms:
            sum(terms.values()).backward(inputs=list(self.embeddings))
        if terms or args.pah_leak:
            self.opt_proto.step()
        return {name: term.detach() for name, term in terms.items()}

    def prototype_losses(self, t: int) -> dict[str, Tensor]:
        """L_sp and L_hp, those with a weight above zero."""
        args, terms = self.args, {}
        first = 0 if t > 0 and args.pah_w_sp > 0 else t
        last = t + 1 if args.pah_w_hp > 0 else t
        if first == last:
            return terms
        rows = self.rows(last, first)
        logits = self.prototype_logits(self.net, rows, self.hyper(rows))
        if first < t:
            per_prototype = kd(logits[:t], self.teacher_prototype_logits, args.pah_temp, args.pah_kl)
            per_task = per_prototype.mean(1) if args.pah_sp_classes == "mean" else per_prototype.sum(1)
            terms["sp"] = args.pah_w_sp * self.over_tasks(per_task)
        if last > t:
            classes = torch.arange(self.cpt, device=self.device)
            terms["hp"] = args.pah_w_hp * F.cross_entropy(logits[-1], classes)
        return terms

    def over_tasks(self, values: Tensor) -> Tensor:
        """Sum or mean over old tasks (t,)."""
        return values.sum() if self.args.pah_reduce == "sum" else values.mean()

    def forward(self, x, task_label=None):
        if self.args.pah_test_bn == "run" or self.training:
            return super().forward(x)
        with batchnorm_mode(self.net, batch_statistics=True):
            return super().forward(x)

    @property
    def declared_leaks(self):
        args, marks = self.args, {}
        if args.pah_test_bn == "batch":
            marks[BATCH] = "batch statistics at test"
        if args.pah_dense and args.pah_proto_init != "gauss":
            marks[LATER] = "an image of every later class from the start"
        return marks

    def report(self, dataset, tasks):
        mode = {"run": "running BatchNorm statistics", "batch": "statistics of the test batch (transductive)"}
        report = super().report(dataset, tasks)
        report.notes = {
            "evaluation mode": mode[self.args.pah_test_bn],
            "forgetting": "compare forgetting_chaudhry with the published forgetting (PAH's FM)",
            "class-il": "not supported by pah: all generated heads compete that were never trained against each other",
        }
        return report
