"""The MLP of neighbourhoods with BatchNorm, forward and backward, for training on a CPU.

What ``LocalMlp`` computes in training, layer by layer: y_l = relu(BatchNorm(y_{l-1} W^T + b)), then
the maximum over each neighbourhood. There are millions of rows and few channels, so on a CPU most
of the time goes into walking through memory. Three identities save these walks:

- The statistics of z = h W^T + b follow from those of h: mean(z) = W mean(h) + b and
  var(z) = diag(W cov(h) W^T). z itself is never kept; a layer is one product with folded weights.
- Behind the last layer the maximum is taken over normalised values and everything after it
  (scale, shift, ReLU) is done to the winners alone. A negative scale makes the maximum a
  minimum: the sign goes into the weights.
- The gradient through the statistics is an affine function of h: with zn = A (h - m) normalised,
  A = W / std, d the gradient of BatchNorm's output, g its scale, R rows, and

      dbeta = sum d,  dgamma = sum d * zn,  dz = (g / std) (d - dbeta / R - zn dgamma / R)

  it follows that dW = (g / std) ((d - mean d)^T h - dgamma A cov(h)) and
  dh = d W' - dbeta W' / R - (h - m) Q with W' = (g / std) W, Q = A^T diag(g / std dgamma / R) W.
  The bias has no gradient: BatchNorm takes it away.
- Of the last layer d is 0 but at the winners, one row in K for each channel: what depends on d is
  added there (``trainer.cpu_kernels``), and is no product of matrices.

Everything goes in blocks of rows that stay in a core's cache; only h of the narrow layers is kept.
The first matrix of a product is the one with fewer columns: a 9 x R by R x 64 takes a fifth of the
time of its transpose.

Shape suffixes: R rows, I and O channels in and out, P neighbourhoods, K rows of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK_ROWS = 2048


@dataclass(frozen=True)
class _Layer:
    """A layer with the statistics of its input: zn = (h - mean_I) folded_OI^T."""

    weight: Tensor  # (O, I)
    bias: Tensor  # (O,)
    gamma: Tensor  # (O,)
    beta: Tensor  # (O,)
    mean: Tensor  # (I,)
    cov: Tensor  # (I, I)
    folded: Tensor  # (O, I) W / std
    std: Tensor  # (O,)
    variance: Tensor  # (O,) of z

    @classmethod
    def of(cls, parameters: Sequence[Tensor], eps: float, mean_I: Tensor, cov_II: Tensor) -> _Layer:
        """``mean_I`` and ``cov_II`` in float64."""
        weight, bias, gamma, beta = parameters
        wide = weight.double()
        variance = ((wide @ cov_II) * wide).sum(1).clamp(min=0.0)
        std = (variance + eps).sqrt()
        return cls(
            weight, bias, gamma, beta, mean_I.to(weight.dtype), cov_II.to(weight.dtype),
            (wide / std[:, None]).to(weight.dtype), std.to(weight.dtype), variance,
        )  # fmt: skip

    def mean_z(self) -> Tensor:
        """(O,) of z, before the normalisation."""
        return self.weight @ self.mean + self.bias

    def map(self, scale_O: Tensor, shift_O: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(O,) and (I, O): scale * zn + shift is the first plus h times the second."""
        weight_OI = self.folded * scale_O[:, None]
        offset_O = -(weight_OI @ self.mean)
        return offset_O if shift_O is None else offset_O + shift_O, weight_OI.T

    def gradients(self, product_OI: Tensor, dbeta_O: Tensor) -> tuple[Tensor, Tensor]:
        """Those of weight and scale, from d^T h and the sum of d."""
        centred_OI = product_OI - dbeta_O[:, None] * self.mean
        dgamma_O = (centred_OI * self.folded).sum(1)
        inner_OI = centred_OI - dgamma_O[:, None] * (self.folded @ self.cov)
        return inner_OI * (self.gamma / self.std)[:, None], dgamma_O

    def back(self, dbeta_O: Tensor, dgamma_O: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """(W', c, Q) of dh = d W' + c - h Q."""
        scale_O = self.gamma / self.std
        outward_OI = self.weight * scale_O[:, None]
        q_II = (self.folded * (scale_O * dgamma_O / rows)[:, None]).T @ self.weight
        constant_I = self.mean @ q_II - (dbeta_O / rows) @ outward_OI
        return outward_OI, constant_I, q_II


class _Moments:
    """Mean and covariance of rows that come in blocks, about a pivot, summed in float64."""

    def __init__(self) -> None:
        self.pivot_I: Tensor | None = None
        self.count = 0

    def add(self, block_RI: Tensor) -> None:
        if self.pivot_I is None:
            self.pivot_I = block_RI.mean(0)
            width = block_RI.shape[1]
            self.sum_I = block_RI.new_zeros(width, dtype=torch.float64)
            self.gram_II = block_RI.new_zeros(width, width, dtype=torch.float64)
        moved_RI = block_RI - self.pivot_I
        self.sum_I += moved_RI.sum(0)
        self.gram_II += moved_RI.T @ moved_RI
        self.count += len(block_RI)

    def result(self) -> tuple[Tensor, Tensor]:
        assert self.pivot_I is not None
        shift_I = self.sum_I / self.count
        cov_II = self.gram_II / self.count - torch.outer(shift_I, shift_I)
        return self.pivot_I + shift_I, cov_II


def _blocks(rows: int, neighbours: int) -> list[slice]:
    """Row ranges of whole neighbourhoods; all cores work on one of them."""
    size = neighbours * max(1, torch.get_num_threads() * BLOCK_ROWS // neighbours)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


class _Inputs:
    """What goes into each layer, some rows at a time.

    Into the first the points. What the second is given is made of them anew each time: of so few
    channels that is less work than fetching it from memory. Those above are kept.
    """

    def __init__(self, x_RI: Tensor, blocks: Sequence[slice], kept: Sequence[Tensor] = ()) -> None:
        self.x_RI, self.blocks, self.kept = x_RI, blocks, list(kept)
        self.first: tuple[Tensor, Tensor] | None = None
        self._room = x_RI.new_empty(0)

    def second(self, layer: _Layer) -> None:
        """Of the first layer, once its statistics are known."""
        self.first = layer.map(layer.gamma, layer.beta)
        self._room = self.x_RI.new_empty(len(self.x_RI[self.blocks[0]]), len(layer.weight))

    def of(self, place: int, block: slice) -> Tensor:
        """(R, I); that of the second layer holds until it is asked for again."""
        if place == 0:
            return self.x_RI[block]
        if place > 1:
            return self.kept[place - 2][block]
        assert self.first is not None
        x = self.x_RI[block]
        offset_O, weight_IO = self.first
        return torch.addmm(offset_O, x, weight_IO, out=self._room[: len(x)]).relu_()


class _LocalMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RI: Tensor, neighbours: int, eps: tuple[float, ...], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        blocks, top = _blocks(len(x_RI), neighbours), len(eps) - 1
        inputs = _Inputs(x_RI, blocks)
        layers: list[_Layer] = []
        for place in range(top + 1):
            moments = _Moments()
            if place > 1:
                below = layers[-1]
                offset_O, weight_IO = below.map(below.gamma, below.beta)
                inputs.kept.append(x_RI.new_empty(len(x_RI), len(below.weight)))
            for block in blocks:
                if place < 2:
                    moments.add(inputs.of(place, block))
                    continue
                out, before = inputs.kept[-1][block], inputs.of(place - 1, block)
                moments.add(torch.addmm(offset_O, before, weight_IO, out=out).relu_())
            four = parameters[4 * place : 4 * place + 4]
            layers.append(_Layer.of(four, eps[place], *moments.result()))
            if place == 0 and top:
                inputs.second(layers[0])
        last = layers[-1]
        # Where the scale is 0 all rows are equal, and any may win.
        sign_O = torch.where(last.gamma < 0, -1.0, 1.0).to(x_RI.dtype)
        offset_O, weight_IO = last.map(sign_O)
        room_RO = x_RI.new_empty(len(x_RI[blocks[0]]), len(last.weight))
        found = []
        for block in blocks:
            h = inputs.of(top, block)
            found.append(_best(torch.mm(h, weight_IO, out=room_RO[: len(h)]), neighbours))
        best_PO = torch.cat([values for values, _ in found])
        best_PO = (best_PO + offset_O) * sign_O  # normalised
        winner_PO = torch.cat([indices for _, indices in found])
        out_PO = torch.addcmul(last.beta, best_PO, last.gamma).relu_()
        # The parameters are not read: PyTorch looks whether they have changed.
        ctx.save_for_backward(x_RI, out_PO, best_PO, winner_PO, *inputs.kept, *parameters)
        ctx.layers, ctx.neighbours = layers, neighbours
        statistics = [value for layer in layers for value in (layer.mean_z(), layer.variance)]
        ctx.mark_non_differentiable(*statistics)
        return out_PO, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return _LocalMlp._backward(ctx, gradients[0])

    @staticmethod
    def _backward(ctx: Any, gradient_PO: Tensor) -> tuple[Tensor | None, ...]:
        from trainer.cpu_kernels import add_at_winners

        x_RI, out_PO, best_PO, winner_PO, *kept = ctx.saved_tensors
        layers, neighbours = ctx.layers, ctx.neighbours
        del kept[len(kept) - 4 * len(layers) :]
        rows, top = len(x_RI), len(layers) - 1
        blocks = _blocks(rows, neighbours)
        inputs = _Inputs(x_RI, blocks, kept)
        if top:
            inputs.second(layers[0])
        d_PO = gradient_PO * (out_PO > 0)
        dbeta_O = d_PO.sum(0)
        dgamma_O = (d_PO * best_PO).sum(0)
        product_OI = torch.zeros_like(layers[-1].weight)
        found: list[tuple[Tensor, ...]] = []
        for place in range(top, -1, -1):
            layer, below = layers[place], layers[place - 1] if place else None
            if below is not None:
                outward_OI, constant_I, q_II = layer.back(dbeta_O, dgamma_O, rows)
                below_product = torch.zeros_like(below.weight)
                below_dbeta = d_PO.new_zeros(len(below.weight))
                room_RI = d_PO.new_empty(len(x_RI[blocks[0]]), len(below.weight))
            elif place == top:  # an only layer
                nowhere_RI = torch.zeros_like(x_RI)
                product_OI = add_at_winners(d_PO, winner_PO, layer.weight, x_RI, nowhere_RI)
            for block in blocks if below is not None else ():
                h = inputs.of(place, block)
                dh = torch.addmm(constant_I, h, q_II, alpha=-1.0, out=room_RI[: len(h)])
                if place == top:
                    some = slice(block.start // neighbours, block.stop // neighbours)
                    product_OI += add_at_winners(d_PO[some], winner_PO[some], outward_OI, h, dh)
                else:
                    dh.addmm_(kept[place - 1][block], outward_OI)
                # Through the ReLU of the layer below.
                torch.ops.aten.threshold_backward(dh, h, 0, grad_input=dh)
                below_dbeta += dh.sum(0)
                below_product.T.addmm_(inputs.of(place - 1, block).T, dh)
                if place > 1:
                    # Nobody needs these rows again, and new memory costs more than the product.
                    # PyTorch refuses a second backward pass, since they have changed.
                    h.copy_(dh)
            dweight_OI, dgamma = layer.gradients(product_OI, dbeta_O)
            found.append((dweight_OI, torch.zeros_like(layer.bias), dgamma, dbeta_O))
            if below is not None:
                product_OI, dbeta_O = below_product, below_dbeta
                dgamma_O = below.gradients(product_OI, dbeta_O)[1]
        every = [value for four in reversed(found) for value in four]
        return None, None, None, *every


def _best(z_RO: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """(P, O) maximum of each neighbourhood, and its place there.

    As a pooling of pictures of K x 1 with their channels last, which PyTorch has a vectorised
    kernel for: an eighth of the time of ``max``.
    """
    z_POK1 = z_RO.view(-1, neighbours, 1, z_RO.shape[1]).permute(0, 3, 1, 2)
    best_PO11, place_PO11 = F.max_pool2d(z_POK1, (neighbours, 1), return_indices=True)
    return best_PO11.flatten(1), place_PO11.flatten(1)


def applies(grouped_BSKC: Tensor, norms: Sequence[nn.Module]) -> bool:
    """Whether ``local_mlp`` can stand for the modules: BatchNorm in training on a CPU, eagerly."""
    if not grouped_BSKC.is_cpu or grouped_BSKC.requires_grad or torch.compiler.is_compiling():
        return False
    if grouped_BSKC.dtype not in (torch.float32, torch.float64) or grouped_BSKC[..., 0].numel() < 2:
        return False
    return all(
        type(norm) is nn.BatchNorm1d and norm.training and norm.affine and norm.momentum is not None
        for norm in norms
    )


def local_mlp(
    grouped_BSKC: Tensor, linears: Sequence[nn.Module], norms: Sequence[nn.Module]
) -> Tensor:
    """(B, S, O) what ``LocalMlp`` gives of (B, S, K, C), with the running statistics kept up.

    In the type of the points, under autocast too: rows that rounding makes equal would take the
    gradient from the winners. Only where ``applies`` says so.
    """
    batch, centroids, neighbours, channels = grouped_BSKC.shape
    rows_RI = grouped_BSKC.reshape(-1, channels)
    parameters: list[Tensor] = []
    kept: list[nn.BatchNorm1d] = []
    for linear, norm in zip(linears, norms, strict=True):
        assert isinstance(linear, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        parameters += [linear.weight, linear.bias, norm.weight, norm.bias]
        kept.append(norm)
    eps = tuple(norm.eps for norm in kept)
    with torch.autocast("cpu", enabled=False):
        out_PO, *statistics = _LocalMlp.apply(rows_RI, neighbours, eps, *parameters)
    with torch.no_grad():
        for place, norm in enumerate(kept):
            mean_O, variance_O = statistics[2 * place : 2 * place + 2]
            _update(norm, mean_O, variance_O, len(rows_RI))
    embedded: Tensor = out_PO.view(batch, centroids, -1)
    return embedded


def _update(norm: nn.BatchNorm1d, mean_O: Tensor, variance_O: Tensor, rows: int) -> None:
    """Running statistics as BatchNorm keeps them: the variance without bias."""
    if not norm.track_running_stats or norm.running_mean is None:
        return
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean_O, norm.momentum)
    unbiased = (variance_O * rows / (rows - 1)).to(norm.running_var.dtype)
    norm.running_var.lerp_(unbiased, norm.momentum)
