"""Cross-entropy of a linear layer's scores, which are never all there at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.autograd import differentiable_backward
from fastcells.backends.base import LossGradients
from fastcells.backends.cpu import cross_entropy as in_c
from fastcells.backends.cpu import native
from fastcells.backends.cpu.policy import MANY_ROWS
from fastcells.backends.torch import cross_entropy as in_torch
from fastcells.linear import uses_cpu_kernel
from fastcells.modes import any_batched, autocast_dtype, is_plain_tensor, no_autocast, traced, transformed

REDUCTIONS = ("mean", "sum", "none")
NONE = (False, False, False)  # of the gradients
TARGETS = (torch.int64, torch.uint8)  # as F.cross_entropy takes them


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> Tensor:
    """`F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, -2), target.flatten(), ...)`, some rows at a time.

    Scores and their gradient are never all in memory; the forward computes the gradients of hidden, weight and bias as
    well, as far as they are wanted. With `reduction="none"` the backward does, which computes the scores again.

    Args:
        hidden: [..., H]. weight: [V, H]. bias: [V] or None.
        target: int64 or uint8 [...], in [0, V) or `ignore_index`.
        ignore_index, label_smoothing, reduction: as `torch.nn.functional.cross_entropy`.
        dtype: of the loss; None is torch's choice, hidden's, or float32 under autocast. Sums are in float32 or better.
        impl: that of the recurrent layer beside it; only "auto" and "cpu" use C: float32 on a CPU, a large product.

    Returns:
        the loss, [] or with reduction="none" target's shape. All rows ignored: NaN as their mean, with gradients of 0.

    Raises:
        ValueError, RuntimeError: as F.cross_entropy. IndexError: a target outside [0, V), on the CPU.

    Second derivatives, torch.func, forward mode, torch.compile and tracing go through torch's own operators, for which
    all scores are in memory.
    """
    rows, classes = _check(hidden, weight, bias, target, label_smoothing, reduction)
    H, lower = hidden.shape[-1], autocast_dtype(hidden)
    dtype = dtype or (hidden.dtype if lower is None else torch.float32)
    if lower is not None:
        hidden, weight, bias = hidden.to(lower), weight.to(lower), None if bias is None else bias.to(lower)
    task = _Task(ignore_index, label_smoothing, reduction, impl)
    given = (hidden.reshape(-1, H), weight, bias)
    plain = all(t is None or is_plain_tensor(type(t)) for t in (*given, target))
    flat = target.reshape(-1).long()
    with no_autocast(hidden):
        if traced() or transformed() or not plain or not rows * classes * H:
            loss = task.by_torch(flat, *given)
        else:
            in_one_call = task.in_one_call(*given[:2])
            if not in_one_call:
                _check_range(flat, target.shape, classes, ignore_index)
            try:
                if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
                    loss = _LinearCrossEntropy.apply(task, flat, *given)
                else:
                    loss = task.loss(flat, given).losses
            except IndexError:
                if in_one_call:
                    _check_range(flat, target.shape, classes, ignore_index)  # raises, with the position in `target`
                raise
    return loss.view(target.shape).to(dtype) if reduction == "none" else loss.to(dtype)


@dataclass(frozen=True)
class _Task:
    ignore_index: int
    smoothing: float
    reduction: str
    impl: str

    def by_torch(self, target: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """All scores at once."""
        scores = F.linear(hidden, weight, bias)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "label_smoothing": self.smoothing}
        return F.cross_entropy(scores, target, reduction=self.reduction, **options)

    def in_one_call(self, hidden: Tensor, weight: Tensor) -> bool:
        """Whether one call of C does everything, the look at the targets included."""
        return len(hidden) >= MANY_ROWS and uses_cpu_kernel(self.impl, hidden, weight) and in_c.packs_all(weight)

    def loss(
        self,
        target: Tensor,
        given: tuple[Tensor, Tensor, Tensor | None],
        wanted: tuple[bool, bool, bool] = NONE,
        d_losses: Tensor | None = None,
    ) -> LossGradients:
        """The loss as `reduction` has it, and the gradients of the losses' sum.

        given: hidden, weight, bias. d_losses: what each is multiplied by in that sum; of a mean that `scales_ahead` it
        is the mean's.
        """
        hidden, weight, bias = given
        if self.in_one_call(hidden, weight):
            own = self.ignore_index, self.smoothing, self.reduction
            return in_c.reduced(hidden, weight, bias, target, *own, wanted, d_losses)
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
        counts = target != self.ignore_index
        if d_losses is None and any(wanted) and self.scales_ahead(hidden):
            d_losses = counts.sum().clamp(min=1).to(hidden.dtype).reciprocal().expand(len(hidden))
        everything = hidden, weight, bias, torch.where(counts, target, 0), counts, self.smoothing, wanted, d_losses
        if len(hidden) >= MANY_ROWS and uses_cpu_kernel(self.impl, hidden, weight):
            found = in_c.losses(*everything)
        else:
            c_may = self.impl in ("auto", "cpu") and native.obstacle() is None and hidden.device.type == "cpu"
            rows = in_c.of_scores if c_may and hidden.dtype != torch.float64 else in_torch.of_scores
            found = in_torch.losses(*everything, of_scores=rows)
        return found._replace(losses=self.reduce(found.losses, counts))

    def scales_ahead(self, hidden: Tensor) -> bool:
        """Whether a mean's gradients are divided by the number of rows in the forward: not where they may vanish."""
        return self.reduction == "mean" and hidden.dtype in (torch.float32, torch.float64)

    def reduce(self, losses: Tensor, counts: Tensor) -> Tensor:
        if self.reduction == "none":
            return losses
        return losses.sum() / counts.sum() if self.reduction == "mean" else losses.sum()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: _Task, target: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.task = task
        wanted = NONE if task.reduction == "none" else ctx.needs_input_grad[2:]
        found = task.loss(target, (hidden, weight, bias), wanted)
        ctx.save_for_backward(target, hidden, weight, bias, found.hidden, found.weight, found.bias)
        return found.losses

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        task: _Task = ctx.task
        target, hidden, weight, bias, *found = ctx.saved_tensors
        given = (hidden, weight, bias)
        if torch.is_grad_enabled() or any_batched(d_loss):  # create_graph=True, is_grads_batched=True
            with no_autocast(hidden):
                gradients = differentiable_backward(lambda *args: (task.by_torch(target, *args),), given, (d_loss,))
            return None, None, *gradients
        with no_autocast(hidden):
            if task.reduction == "none":
                _, *found = task.loss(target, given, ctx.needs_input_grad[2:], d_loss)
            else:
                late = task.reduction == "mean" and not task.scales_ahead(hidden)
                scale = d_loss / (target != task.ignore_index).sum().clamp(min=1) if late else d_loss
                # What a graph that is kept has saved stays its own. And a look waits for another device.
                if _keeps_graph() or scale.device.type != "cpu" or scale.item() != 1:
                    found = [None if g is None else g * scale for g in found]
            return None, None, *(None if g is None else g.to(weight.dtype) for g in found)


def _keeps_graph() -> bool:
    """Whether the backward under way may be followed by another: retain_graph=True."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _check(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, label_smoothing: float, reduction: str
) -> tuple[int, int]:
    """Rows and classes of what fits together."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a valid value for reduction: select from {', '.join(REDUCTIONS)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0, got {label_smoothing}")
    if hidden.dim() < 1 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"hidden of shape {list(hidden.shape)} does not fit weight of shape {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"bias must be {[len(weight)]}, got {list(bias.shape)}")
    if autocast_dtype(hidden) is None and any(t is not None and t.dtype != hidden.dtype for t in (weight, bias)):
        others = ", ".join(str(t.dtype) for t in (weight, bias) if t is not None)
        raise RuntimeError(f"hidden has dtype {hidden.dtype}, weight and bias have {others}")
    if target.dtype not in TARGETS:
        raise RuntimeError(f"target must be classes, int64 or uint8, got {target.dtype} {list(target.shape)}")
    if target.shape != hidden.shape[:-1]:
        raise ValueError(f"target of shape {list(target.shape)} does not fit hidden of shape {list(hidden.shape)}")
    return target.numel(), len(weight)


def _check_range(target: Tensor, shape: torch.Size, classes: int, ignore_index: int) -> None:
    """IndexError for a target that is no class; only on the CPU, since a look at the values waits for the device."""
    if target.device.type != "cpu":
        return
    low, high = target.aminmax()
    if low >= 0 and high < classes:
        return
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if outside.any():
        position = outside.view(shape).nonzero()[0].tolist()
        value = int(target[outside][0])
        raise IndexError(f"Target {value} at {position} of shape {list(shape)} is out of bounds: [0, {classes})")
