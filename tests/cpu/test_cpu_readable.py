"""What C asks of torch's tensors, beside what torch says of them: kernels/cpu/tensors.c."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcells.backends.cpu import native
from fastcells.backends.cpu.layer_call import dense, empty_of, shapes

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)


class Mine(Tensor):
    pass


def readable(t: object, *shape: int, graph: bool = False) -> object:
    return native._cpu.readable(graph, [t], shapes(shape))


def place(t: object, time: int = 0, graph: bool = False) -> object:
    return native._cpu.place(graph, t, time)


def test_what_can_be_read() -> None:
    w, b, x = nn.Parameter(torch.randn(4, 3)), torch.randn(4), torch.randn(2, 5, 3)
    both = shapes((4, 3), (4,))
    assert native._cpu.readable(False, [w, b], both) == (w.data_ptr(), b.data_ptr())
    assert native._cpu.readable(False, [w], both) == (w.data_ptr(),)  # shapes may be left over, tensors not
    assert native._cpu.readable(False, [w, b, b], both) is None
    assert readable(w[1:], 3, 3) == (w.data_ptr() + 12,)
    one = torch.randn(3, 7)[:, :1]  # strides do not matter where there is one
    assert readable(one[:1], 1, 1) == (one.data_ptr(),)
    assert place(x) == (x.data_ptr(), 3, 2, 5, 3, 15, 3) and place(x, 1) == (x.data_ptr(), 3, 5, 2, 3, 3, 15)
    assert place(x[0]) == place(x[0], 1) == (x.data_ptr(), 2, 5, 1, 3, 3, 0)
    assert place(b) == (b.data_ptr(), 1, 1, 1, 4, 0, 0)
    assert place(x[:, ::2]) == (x.data_ptr(), 3, 2, 3, 3, 15, 6)
    assert place(x[:, :, :1]) == (x.data_ptr(), 3, 2, 5, 1, 15, 3)


def off_by_a_byte() -> Tensor:
    return torch.frombuffer(bytearray(49), dtype=torch.float32, offset=1, count=12).view(4, 3)


UNREADABLE: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "number": lambda: 1.0,
    "list": lambda: [[1.0] * 3] * 4,
    "array": lambda: torch.randn(4, 3).numpy(),
    "subclass": lambda: torch.randn(4, 3).as_subclass(Mine),
    "double": lambda: torch.randn(4, 3, dtype=torch.float64),
    "integers": lambda: torch.zeros(4, 3, dtype=torch.int32),
    "bfloat16": lambda: torch.randn(4, 3).bfloat16(),
    "complex": lambda: torch.randn(4, 3, dtype=torch.complex64),
    "meta": lambda: torch.empty(4, 3, device="meta"),
    "sparse": lambda: torch.eye(4, 3).to_sparse(),
    "mkldnn": lambda: torch.randn(4, 3).to_mkldnn(),
    "zeros": lambda: torch._efficientzerotensor((4, 3)),
    "negative": lambda: torch._neg_view(torch.randn(4, 3)),
    "nothing": lambda: torch.empty(0, 3),
    "unaligned": off_by_a_byte,
}


@pytest.mark.parametrize("made", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot(made: Callable[[], object]) -> None:
    t = made()
    assert readable(t, 4, 3) is None and place(t) is None
    assert readable(torch.randn(4, 3), 4, 3) is not None  # no error is left behind


def test_other_shapes_and_strides() -> None:
    w = torch.randn(4, 3)
    for shape in ((3, 4), (12,), (4, 3, 1), (4,), (5, 3), ()):
        assert readable(w, *shape) is None
    assert native._cpu.readable(False, [w], shapes((4, 3))[:-8]) is None  # a shape that is cut off
    assert readable(w.t(), 3, 4) is None and readable(torch.randn(4, 6)[:, ::2], 4, 3) is None
    assert readable(w[:1].expand(4, 3), 4, 3) is None and readable(torch.randn(4, 4)[:, :3], 4, 3) is None
    assert place(torch.randn(2, 5, 6)[..., ::2]) is None and place(torch.randn(2, 2, 5, 3)) is None
    assert place(torch.tensor(1.0)) is None


def test_gradients() -> None:
    leaf, graph = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True) * 2
    for t in (leaf, graph, nn.Parameter(torch.randn(4, 3))):
        assert readable(t, 4, 3, graph=True) is None and place(t, graph=True) is None
        assert readable(t, 4, 3) is not None and place(t) is not None
        frozen = t.detach()
        assert readable(frozen, 4, 3, graph=True) is not None and place(frozen, graph=True) is not None


def test_imaginary_parts() -> None:
    """Of a conjugate, torch negates them when they are read: with a single feature they lie as others do."""
    z = torch.randn(2, 5, 1, dtype=torch.complex64)
    assert place(z.imag) is not None and place(z.conj().imag) is None


def test_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of torch.empty, and in inference mode those of inference mode."""
    sizes, strides = dense((2, 3, 4))
    assert dense((7,)) == ((7,), (1,)) and strides == torch.empty(sizes).stride()
    t = empty_of()(sizes, strides, torch.float32)
    assert t.shape == sizes and t.is_contiguous() and t._base is None and t._version == 0 and not t.requires_grad
    t.resize_(50)
    with torch.inference_mode():
        assert empty_of()(sizes, strides, torch.float32).is_inference()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        assert empty_of()(sizes, strides, torch.float32).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_wrong_calls() -> None:
    for call in (lambda: native._cpu.readable(False, []), lambda: native._cpu.place(False)):
        with pytest.raises(TypeError, match=r"expected 3 arguments, got [12]"):
            call()
    with pytest.raises((TypeError, SystemError)):
        native._cpu.readable(False, 1, shapes((4, 3)))
    with pytest.raises(TypeError):
        native._cpu.readable(False, [], "shapes")
