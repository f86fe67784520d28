"""Which implementation runs, and the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from fastcells.autocast import autocast_dtype
from fastcells.backends.cpu import native, policy
from fastcells.errors import CannotRun
from fastcells.kernels.triton import plan
from fastcells.transforms import compiling, traced, transformed

PLAIN = (Tensor, nn.Parameter)  # another subclass may keep its values elsewhere: auto leaves it to torch's operators
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IMPLEMENTATIONS = ("auto", "torch", "cpu", "triton", "triton-step")


@dataclass(frozen=True)
class Choice:
    """What runs: `impl` as the user names it, `path` within it, and why, as text."""

    impl: str
    # torch: "aten", ATen's fused recurrence, "one-hot", the same on the one-hot of token ids, or "recurrence", ours.
    # cpu: "c". Triton: "sequence", one program a batch tile, "split", several that exchange the state, or "step".
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.impl} ({self.path}): {self.reason}"


ATEN = Choice("torch", "aten", "ATen's fused recurrence expresses this case")
RESET_BEFORE = Choice("torch", "recurrence", "ATen has no reset-before GRU")
TOKEN_IDS = Choice("torch", "recurrence", "token ids gather rows of W_ih^T, ATen would need the one-hot")
RESETS = Choice("torch", "recurrence", "ATen has no resets")
LENGTHS = Choice("torch", "recurrence", "ATen takes lengths in packed form only")
TRANSFORMED = Choice("torch", "recurrence", "transforms look through plain steps, ATen's recurrence hides them")
COMPILED_LSTM = Choice("torch", "recurrence", "torch.compile cannot differentiate ATen's LSTM on this device")
ONE_HOT = Choice("torch", "one-hot", "one step on so few ids costs less through ATen, on their one-hot")
ONE_HOT_RECORDED = Choice("torch", "one-hot", "ATen's recurrence is recorded for any number of steps, ours is not")
GATHERED_IN_C = Choice("torch", "recurrence", "one step: C gathers rows of W_ih^T for token ids, torch does the rest")


class Explanation(dict[str, Choice]):
    """What runs for each layer and direction, by torch's suffixes: "l0", "l0_reverse", "l1"; of a cell, "cell".

    As text one line, or one for each where they differ. `impl`, `path` and `reason` are those of all of them.
    """

    @property
    def impl(self) -> str:
        return self._common("impl")

    @property
    def path(self) -> str:
        return self._common("path")

    @property
    def reason(self) -> str:
        return self._common("reason")

    def _common(self, name: str) -> str:
        values = {str(getattr(choice, name)) for choice in self.values()}
        if len(values) > 1:
            raise ValueError(f"the layers differ in {name}: {dict(self)}")
        return values.pop()

    def __str__(self) -> str:
        lines = {str(choice) for choice in self.values()}
        return lines.pop() if len(lines) == 1 else "\n".join(f"{name}: {choice}" for name, choice in self.items())


def check_impl(impl: str) -> None:
    """Raise ValueError unless `impl` names an implementation of this version."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {impl!r}")


class Call(NamedTuple):
    """One layer, one direction: what a choice depends on."""

    cell: str  # TorchCell.name
    token_ids: bool
    steps: int
    batch: int
    w_hh: Tensor  # [G*H, H]
    lengths: bool = False  # whether the batch is ragged and not packed
    projected: bool = False
    resets: bool = False
    input_type: type = Tensor
    padding: float = 1.0  # T * B over the number of tokens, of a packed batch


def choose(impl: str, call: Call) -> Choice:
    """The implementation of one call.

    Raises:
        CannotRun: `impl` names an implementation that cannot run this case. ValueError: it names none.
    """
    check_impl(impl)
    if impl == "auto":
        return automatic(call)
    if impl == "torch":
        return in_torch(call.cell, call.token_ids, call.lengths, call.resets)
    return _cpu(call) if impl == "cpu" else _triton(impl, call)


def in_torch(cell: str, token_ids: bool, lengths: bool = False, resets: bool = False) -> Choice:
    """Which of its paths `impl="torch"` takes; also what "auto" runs for a single step, hence for cells."""
    if token_ids:
        return TOKEN_IDS
    if cell == "gru_reset_before":
        return RESET_BEFORE
    if resets:
        return RESETS
    if lengths:
        return LENGTHS
    # oneDNN's LSTM layer has no forward-mode derivative.
    forward_mode = cell == "lstm" and forward_ad._current_level >= 0
    if forward_mode or torch._C._are_functorch_transforms_active():
        return TRANSFORMED
    # Under torch.compile, not torch.export: oneDNN's LSTM layer fails in AOTAutograd.
    compiled = cell == "lstm" and torch.is_grad_enabled() and compiling()
    return COMPILED_LSTM if compiled else ATEN


def of_one_step(impl: str, choice: Choice, ids: Tensor, steps: int, w_ih: Tensor) -> Choice:
    """`choice` for token ids, or what is better for a call that is recorded and, with "auto", for a single step.

    w_ih: [G*H, V].
    """
    if choice is not TOKEN_IDS or torch._C._are_functorch_transforms_active():
        return choice
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # type: ignore[attr-defined]
        return ONE_HOT_RECORDED
    if steps > 1 or impl != "auto" or torch.compiler.is_compiling():
        return choice
    if ids.numel() * w_ih.numel() <= policy.ONE_HOT_PRODUCT:
        return ONE_HOT
    return GATHERED_IN_C if _c_serves(w_ih) else choice


def automatic(call: Call) -> Choice:
    """What `impl="auto"` runs."""
    plain = in_torch(call.cell, call.token_ids, call.lengths, call.resets)
    plainly = call.input_type in PLAIN and type(call.w_hh) in PLAIN
    watched = transformed() or (traced() and not compiling())
    if call.steps < policy.FEWEST_STEPS_IN_C or c_obstacle(call) is not None or not plainly or watched:
        return plain
    if plain is ATEN and call.padding > policy.MOST_PADDING_IN_C:
        return plain
    faster = policy.faster_in_c(
        call.cell,
        call.steps,
        call.batch,
        call.w_hh.shape[1],
        training=call.w_hh.requires_grad and torch.is_grad_enabled(),
        aten=plain is ATEN,
        instructions=native.instruction_set(),
    )
    return plain if faster is None else Choice("cpu", "c", faster)


def c_obstacle(call: Call) -> str | None:
    """Why C cannot run the call, or None."""
    dtype = autocast_dtype(call.w_hh) or call.w_hh.dtype
    if call.w_hh.device.type != "cpu":
        return f"the weights are on {call.w_hh.device}"
    if dtype != torch.float32:
        return f"there is no kernel for {dtype}"
    return "there is no kernel for proj_size" if call.projected else native.obstacle()


def linear_in_c(impl: str, x: Tensor, w: Tensor) -> bool:
    """Whether a linear layer beside a recurrent one with this `impl` runs through `linear`."""
    product = x.numel() * len(w)
    return impl in ("auto", "cpu") and product >= policy.LARGE_PRODUCT and _c_serves(x) and _c_serves(w)


def _c_serves(t: Tensor) -> bool:
    """Whether C may read a tensor, and nobody looks through torch's operators."""
    return (
        t.device.type == "cpu"
        and t.dtype == torch.float32
        and type(t) in PLAIN
        and autocast_dtype(t) is None
        and native.obstacle() is None
        and not (traced() or transformed())
    )


def _cpu(call: Call) -> Choice:
    obstacle = c_obstacle(call)
    if obstacle is not None:
        raise CannotRun("impl='cpu'", obstacle)
    return Choice("cpu", "c", f"asked for; C with {native.instruction_set()} instructions")


def _triton(impl: str, call: Call) -> Choice:
    """The Triton path that `impl` names; CannotRun with the reason if it cannot run."""
    obstacle, found, w_hh = None, None, call.w_hh
    dtype = autocast_dtype(w_hh) or w_hh.dtype
    if find_spec("triton") is None:
        obstacle = "triton is not installed"
    elif not w_hh.is_cuda and not (w_hh.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        obstacle = f"the weights are on {w_hh.device}: a GPU is needed, or TRITON_INTERPRET=1 for the interpreter"
    elif dtype not in TRITON_DTYPES:
        obstacle = f"there is no kernel for {dtype}"
    elif call.projected:
        obstacle = "there is no kernel for proj_size"
    elif call.resets:
        obstacle = "there is no kernel for resets"
    elif w_hh.numel() == 0:
        obstacle = f"w_hh of shape {list(w_hh.shape)} is empty"
    elif impl == "triton":
        H = w_hh.shape[1]
        precision = matmul_precision(dtype, w_hh.device)
        found = plan.sequence_plan(H, call.batch, len(w_hh) // H, dtype.itemsize, gpu(w_hh.device), precision=precision)
        obstacle = f"{found}; 'triton-step' has no such limit" if isinstance(found, str) else None
    if obstacle is not None:
        raise CannotRun(f"impl={impl!r}", obstacle)
    if isinstance(found, plan.Blocks):
        return Choice(impl, "sequence", f"asked for; {found.reason}")
    if isinstance(found, plan.Split):
        return Choice(impl, "split", f"asked for; {found.reason}")
    return Choice(impl, "step", "asked for; one launch a step")


def gpu(device: torch.device) -> plan.Device | None:
    """What the plan has to know of it; None for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return plan.Device(10 * properties.major + properties.minor, properties.multi_processor_count)


def matmul_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Triton's input_precision for a recurrence's matmuls: tf32 where torch's own switch for RNNs allows it.

    Elsewhere a float32 is taken for the sum of two tf32, and three products of these make one in almost float32's
    precision: "tf32x3". "ieee" has no matrix instructions and spills registers.
    """
    if dtype != torch.float32 or device.type != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "tf32x3"  # type: ignore[attr-defined]


class _Chooses(Protocol):
    def choose(self, input: Tensor | PackedSequence) -> Explanation: ...


def explain(module: _Chooses, input: Tensor | PackedSequence) -> Explanation:
    """Which implementation `module(input)` runs, for each layer and direction, and why.

    `print(fastcells.explain(gru, x))`; `explain(gru, x)["l0"].impl`; `explain(gru, x).impl` where all agree.

    module: a layer or cell of this package. input: what would be passed to it; nothing is computed.

    Raises:
        TypeError: any other module. CannotRun: `module.impl` names an implementation that cannot run it.
    """
    if not hasattr(module, "choose"):
        name = f"{type(module).__module__}.{type(module).__name__}"
        hint = "; fastcells.convert(module) gives its twin" if isinstance(module, nn.RNNBase | nn.RNNCellBase) else ""
        raise TypeError(f"explain() needs a fastcells layer or cell, got {name}{hint}")
    return module.choose(input)


def refuse_script(module: nn.Module) -> NoReturn:
    """Raise what torch.jit.script(module) ends with."""
    raise RuntimeError(
        f"torch.jit.script cannot compile fastcells.{type(module).__name__}: script its torch.nn twin instead, "
        "torch.jit.script(fastcells.to_torch(copy.deepcopy(model)))"
    )
