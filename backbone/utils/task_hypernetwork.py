"""Hypernetworks that turn one embedding per task into all weights of another network, in full or by chunks, and
generators that turn noise into weights.

References: von Oswald et al. 2020 (task embeddings, chunks); Henning et al. 2021 (distributions over weights); Chang,
Flokas & Lipson 2020 (hyperfan initialisation).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "linear": torch.positive}


class MLP(nn.Module):
    """Linear layers of these widths, Xavier-uniform with biases 0, and an activation ('relu', 'sigmoid', 'tanh' or
    'linear') between them.
    """

    def __init__(self, widths: Sequence[int], activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.reset()

    def reset(self) -> None:
        """Fresh weights."""
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def before_last(self, h: Tensor) -> Tensor:
        """What the last layer reads."""
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return h


class TaskHypernetwork(MLP):
    """e_t -> all weights of a network: an MLP, called once, or once per chunk with the chunk's embedding beside e_t.

    Embeddings are Gaussian. All tasks asked for are one batch. The first layer of a chunked one is a sum,
    W [e; c] = W_e e + W_c c, so that tasks and chunks are multiplied apart.

    Args:
        outputs: numbers to generate.
        hidden: widths of the hidden layers; empty for a linear map.
        embedding: entries of a task embedding.
        activation: as of `MLP`.
        chunk: outputs of a chunk, 0 for all at once; what the last chunk has too many is cut off.
        chunk_embedding: entries of a chunk's embedding.
        conditional: every task has chunk embeddings of its own.
        std, chunk_std: standard deviations of fresh embeddings.

    Attributes:
        n_chunks: number of chunks (1 without).
        embeddings: one (embedding,) per task.
        chunk_embeddings: one (n_chunks, chunk_embedding) per task, or a single one.
    """

    def __init__(
        self,
        outputs: int,
        hidden: Sequence[int],
        embedding: int = 32,
        activation: str = "relu",
        chunk: int = 0,
        chunk_embedding: int = 32,
        conditional: bool = False,
        std: float = 1.0,
        chunk_std: float = 1.0,
    ):
        super().__init__([embedding + (chunk_embedding if chunk else 0), *hidden, chunk or outputs], activation)
        self.outputs, self.chunk, self.conditional = outputs, chunk, conditional
        self.embedding, self.chunk_embedding, self.std, self.chunk_std = embedding, chunk_embedding, std, chunk_std
        self.n_chunks = math.ceil(outputs / chunk) if chunk else 1
        self.embeddings, self.chunk_embeddings = nn.ParameterList(), nn.ParameterList()
        if chunk and not conditional:
            self.chunk_embeddings.append(nn.Parameter(self._fresh_chunks()))

    def add_task(self, like_previous: bool = False) -> None:
        """Append the embedding of one more task, and its chunk embeddings; a copy of the previous ones if so wanted."""
        copied = like_previous and len(self.embeddings)
        device = self.layers[0].weight.device
        fresh = self.embeddings[-1].detach().clone() if copied else self.std * torch.randn(self.embedding)
        self.embeddings.append(nn.Parameter(fresh.to(device)))
        if self.chunk and self.conditional:
            chunks = self.chunk_embeddings[-1].detach().clone() if copied else self._fresh_chunks()
            self.chunk_embeddings.append(nn.Parameter(chunks.to(device)))

    def hidden(self, tasks: Sequence[int]) -> Tensor:
        """What the last layer reads for each chunk of these tasks, (K, N, width)."""
        e = torch.stack([self.embeddings[t] for t in tasks]).unsqueeze(1)
        if self.chunk:
            chunks = [self.chunk_embeddings[t if self.conditional else 0] for t in tasks]
            e = torch.cat([e.expand(-1, self.n_chunks, -1), torch.stack(chunks)], 2)
        return self.before_last(e)

    def squared_change(self, before: "TaskHypernetwork", tasks: Sequence[int], whole: Tensor) -> Tensor:
        """sum |h_before(e) - h(e)|^2 over the outputs of some chunks and over tasks, without making the outputs.

        With the last layer A h + b the change of a chunk is A (h - h') + (A - A') h' + (b - b') = M z, whose square is
        z^T (M^T M) z: the work is that of one small matrix, however many tasks and chunks there are.

        Args:
            before: the hypernetwork as it was; not differentiated.
            whole: (W,) numbers of the chunks.
        """
        layer, last = self.layers[-1], before.layers[-1]
        with torch.autocast(layer.weight.device.type, enabled=False):  # differences of what is nearly the same
            with torch.no_grad():
                old = before.hidden(tasks)[:, whole]
            h = self.hidden(tasks)[:, whole]
            M = torch.cat([layer.weight, layer.weight - last.weight, (layer.bias - last.bias).unsqueeze(1)], 1)
            z = torch.cat([h - old, old, torch.ones_like(h[..., :1])], 2)
            return SumOfSquares.apply(M, z.flatten(0, 1))

    def chunks(self, tasks: Sequence[int], which: Tensor) -> Tensor:
        """The outputs of some chunks alone, (K, W, chunk), uncut."""
        return self.layers[-1](self.hidden(tasks)[:, which])

    def forward(self, tasks: Sequence[int]) -> Tensor:
        """Weights (K, outputs) of these tasks."""
        e = torch.stack([self.embeddings[t] for t in tasks])
        if not self.chunk:
            return self.layers[-1](self.before_last(e))
        first, *others = self.layers
        by_task, by_chunk = first.weight.split([self.embedding, self.chunk_embedding], 1)
        h = F.linear(e, by_task, first.bias).unsqueeze(1)  # (K, 1, width)
        if self.conditional:
            c = torch.stack([self.chunk_embeddings[t] for t in tasks])  # (K, N, d)
            h = torch.baddbmm(h, c, by_chunk.T.expand(len(c), -1, -1))
        else:
            h = h + F.linear(self.chunk_embeddings[0], by_chunk)
        for layer in others:
            h = layer(self.activation(h))
        cut = self.n_chunks * self.chunk - self.outputs
        return h.flatten(1).split([self.outputs, cut], 1)[0] if cut else h.flatten(1)

    def _fresh_chunks(self) -> Tensor:
        return self.chunk_std * torch.randn(self.n_chunks, self.chunk_embedding)

    # ---- initialisations by the network that is generated

    @torch.no_grad()
    def initialise_gauss(self, variances: Sequence[tuple[int, float]]) -> None:
        """Fresh outputs with given variances, whatever the hidden layers do.

        A full hypernetwork: weights of the last layer 0, its biases uniform with these variances; all tasks begin with
        the same outputs. A chunked one cannot tell its outputs apart: its chunk embeddings are scaled such that the
        outputs have these variances on average, and the last layer where the task embeddings alone give more.

        Args:
            variances: (number of outputs, their variance), in order, for all outputs.
        """
        if not self.chunk:
            last = self.layers[-1]
            last.weight.zero_()
            for part, (_, v) in zip(last.bias.split([n for n, _ in variances]), variances, strict=True):
                part.uniform_(-math.sqrt(3 * v), math.sqrt(3 * v))
            return
        wanted = sum(n * v for n, v in variances) / self.outputs
        last, std, self.chunk_std = self.layers[-1], self.chunk_std, 0.0
        # what task embeddings alone give must leave half of it to the chunks
        from_task = last(self._last_hidden()).var().item()
        last.weight.mul_(min(1.0, math.sqrt(wanted / (2 * max(from_task, 1e-20)))))
        self.chunk_std = std
        for _ in range(8):  # outputs are not linear in the embeddings: a few rounds of proportional correction
            self.chunk_std *= math.sqrt(wanted / max(last(self._last_hidden()).var().item(), 1e-20))
            for chunks in self.chunk_embeddings:
                chunks.copy_(self._fresh_chunks())

    @torch.no_grad()
    def initialise_hyperfan(self, shapes: Sequence[torch.Size]) -> None:
        """Hyperfan-in: the rows of the last layer that make a tensor are scaled so that the generated network keeps the
        variance of its activations, Var = 1 / (d_in d_h Var(h)) for a matrix with d_in inputs, biases 0.

        A full hypernetwork only: a chunk belongs to no tensor, there the variance is the mean over all tensors.

        Args:
            shapes: of the generated tensors, in order; they may be fewer than the outputs, the rest stays as it is.
        """
        last = self.layers[-1]
        scale = 1 / (last.in_features * self._last_hidden().square().mean().item())
        per_tensor = [(s.numel(), scale / math.prod(s[1:]) if len(s) > 1 else 0.0) for s in shapes]
        n = sum(count for count, _ in per_tensor)
        if self.chunk:
            last.bias.zero_()
            last.weight.normal_(std=math.sqrt(sum(count * v for count, v in per_tensor) / n))
            return
        last.bias[:n].zero_()
        rows = last.weight[:n].split([count for count, _ in per_tensor])
        for part, (_, v) in zip(rows, per_tensor, strict=True):
            part.normal_(std=math.sqrt(v))

    def _last_hidden(self) -> Tensor:
        """What the last layer reads for 64 fresh embeddings, of 64 chunks."""
        e = self.std * torch.randn(64, self.embedding)
        if self.chunk:
            e = torch.cat([e, self.chunk_std * torch.randn(64, self.chunk_embedding)], 1)
        return self.before_last(e)


class SumOfSquares(torch.autograd.Function):
    """sum_c |M z_c|^2 for M (D, w) and z (N, w), when D and N are both much larger than w: <M^T M, Z^T Z>."""

    @staticmethod
    def forward(ctx, M: Tensor, Z: Tensor) -> Tensor:
        G, S = M.T @ M, Z.T @ Z
        ctx.save_for_backward(M, Z, G, S)
        return (G * S).sum()

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        M, Z, G, S = ctx.saved_tensors
        return M @ (2 * grad_output * S), Z @ (2 * grad_output * G)


class WeightGenerator:
    """W = g(z; phi): an MLP from noise to all weights of a network, its own weights phi given from outside.

    With `perturbation` > 0 the samples have full support: z has one entry per weight, the first `latent` of them enter
    g, and `perturbation` * z is added to what comes out.

    Args:
        outputs: P, weights to generate.
        hidden, activation, chunk, chunk_embedding: as of `TaskHypernetwork`; the chunk embeddings are part of phi.
        latent: entries of z that g reads.
        latent_std: standard deviation of z.
        perturbation: standard deviation of the added noise in units of `latent_std`.

    Attributes:
        shapes: of the tensors in phi.
        size: entries of phi.
    """

    def __init__(
        self,
        outputs: int,
        hidden: Sequence[int],
        latent: int = 8,
        latent_std: float = 1.0,
        activation: str = "relu",
        chunk: int = 0,
        chunk_embedding: int = 32,
        perturbation: float = 0.0,
    ):
        self.outputs, self.latent, self.latent_std, self.perturbation = outputs, latent, latent_std, perturbation
        self.activation, self.chunk = ACTIVATIONS[activation], chunk
        n_chunks = math.ceil(outputs / chunk) if chunk else 0
        widths = [latent + (chunk_embedding if chunk else 0), *hidden, chunk or outputs]
        self.shapes = [torch.Size(s) for i, o in pairwise(widths) for s in ((o, i), (o,))]
        if chunk:
            self.shapes.append(torch.Size((n_chunks, chunk_embedding)))
        self.sizes = [shape.numel() for shape in self.shapes]
        self.size = sum(self.sizes)

    def noise(self, samples: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """z (S, d)."""
        entries = max(self.outputs, self.latent) if self.perturbation else self.latent
        return self.latent_std * torch.randn(samples, entries, generator=generator, device=device)

    def __call__(self, phi: Tensor, z: Tensor) -> Tensor:
        """Weights (K, S, P) from phi (K, size) and z (S, d), the same z for every phi."""
        parts = [p.unflatten(-1, s) for p, s in zip(phi.split(self.sizes, -1), self.shapes, strict=True)]
        chunks = parts.pop() if self.chunk else None
        layers = list(zip(parts[::2], parts[1::2], strict=True))
        weight, bias = layers[0]
        inputs = z[:, : self.latent].expand(len(phi), -1, -1)
        h = torch.baddbmm(bias.unsqueeze(1), inputs, weight[..., : self.latent].transpose(1, 2))
        if chunks is not None:  # (K, S, 1, width) + (K, 1, N, width)
            h = h.unsqueeze(2) + torch.bmm(chunks, weight[..., self.latent :].transpose(1, 2)).unsqueeze(1)
            h = h.flatten(1, 2)  # (K, S * N, width)
        for weight, bias in layers[1:]:
            h = torch.baddbmm(bias.unsqueeze(1), self.activation(h), weight.transpose(1, 2))
        if chunks is not None:
            h = h.unflatten(1, (len(z), chunks.shape[1])).flatten(2)[..., : self.outputs]
        return h + self.perturbation * z[:, : self.outputs] if self.perturbation else h

    def draw(self, phi: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Weights (S, P) of fresh noise from phi (size,), or (K, S, P) from phi (K, size)."""
        made = self(phi.view(-1, self.size), self.noise(samples, phi.device, generator))
        return made[0] if phi.dim() == 1 else made

    def usual_weights(self) -> Tensor:
        """phi (size,) as an MLP is initialised: Xavier-uniform, biases 0, chunk embeddings standard Gaussian."""
        parts = [nn.init.xavier_uniform_(torch.empty(s)) if len(s) > 1 else torch.zeros(s) for s in self.shapes]
        if self.chunk:
            parts[-1] = torch.randn(self.shapes[-1])
        return torch.cat([part.flatten() for part in parts])
