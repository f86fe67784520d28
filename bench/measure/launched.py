"""Compile what a launcher launches as Triton's own launch would, for a target that need not be there."""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
TYPES[torch.uint8] = "u8"  # flags
OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_cooperative_grid")


def signature(kernel: Any, arguments: dict[str, Any]) -> dict[str, str]:
    """The type of each argument; "constexpr" of what is a constant in the compiled kernel, and no parameter of it."""
    kinds = {}
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            kinds[parameter.name] = "*" + TYPES[value.dtype]
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            kinds[parameter.name] = "constexpr"
        else:
            assert type(value) is int, (parameter.name, value)
            kinds[parameter.name] = "i32"
    return kinds


def compile_launch(kernel: Any, arguments: dict[str, Any], target: int) -> Any:
    """Compile a launch's kernel: addresses and sizes that 16 divides are known to be so. A meta tensor's is one."""
    assert isinstance(kernel, triton.JITFunction), "an interpreted kernel cannot be compiled"
    kinds, constants, attributes = signature(kernel, arguments), {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if kinds[parameter.name] == "constexpr":
            constants[(index,)] = value
        elif number % 16 == 0 and not parameter.do_not_specialize:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source_of = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = source_of(fn=kernel, signature=kinds, constexprs=constants, attrs=attributes)
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
