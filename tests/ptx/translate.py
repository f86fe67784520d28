"""PTX as Python: a function for each stretch of instructions between two points where another warp may take over.

The functions work on `warps.Warps` (called u), registers of all whose threads they compute at once. They call what
`operations.py` and `matrix.py` compute, and the methods of u for what touches memory or other warps.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from tests.ptx import matrix, values
from tests.ptx.classes import class_of
from tests.ptx.memory import ORDERED
from tests.ptx.operands import by_whole_warps, many, unguarded, width
from tests.ptx.operations import TABLE, Operation
from tests.ptx.parse import Instruction, Operand, Text, Unsupported
from tests.ptx.values import UNSIGNED, Array, bits_of, dtype_of

SPECIAL = {
    "%tid.x": "u.tid",
    "%laneid": "u.lane",
    "%ntid.x": "u.program.ntid",
    "%warpid": "u.warp_id",
    **{f"%ctaid.{axis}": f"u.program.id[{i}]" for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"u.program.grid[{i}]" for i, axis in enumerate("xyz")},
}
# What an access may say of caches, and what changes nothing here. Not `.cta`: such an access orders nothing for other
# programs. Not `.nc`: it reads from a cache that no store reaches.
HINTS = {"global", "gpu", "sys", "weak", "cg", "ca", "cs", "cv", "wt", "wb"}
HINTS |= {f"L1::{policy}" for policy in ("evict_last", "evict_first", "no_allocate", "evict_normal", "evict_unchanged")}
FENCES = re.compile(r"fence\.(acq_rel|sc)\.(gpu|sys)$|membar\.(gl|sys)$")  # what orders accesses of different programs
# After these another warp may go on.
YIELDS = re.compile(
    r"bra|ret|exit|bar\.|barrier|atom|red\.|fence|membar|nanosleep|st\.\S*global"
    r"|ld\.(volatile|relaxed|acquire)|ld\.global\.(volatile|relaxed|acquire|gpu|sys)"
)


class Translation:
    """A kernel's functions, and what each stands for.

    segments: function number -> function(u), which returns the number of the next, -1 at the end.
    counts: how many instructions of each class are in it.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        self.registers: dict[str, int] = {}
        self.counts: list[Counter[str]] = []
        self._parameters = dict(text.parameters)
        self._namespace: dict[str, Any] = {"np": np, **vars(values), **vars(matrix)}
        self._constants: dict[tuple[str, bytes], str] = {}
        self._functions: dict[str, str] = {}
        stretches, self._starts = self._cut()
        code: list[str] = []
        for number, stretch in enumerate(stretches):
            code.append(f"def segment{number}(u):\n R = u.registers")
            ending = f" return {number + 1}"
            for instruction in stretch:
                if instruction.opcode.startswith("bra"):
                    target = self._starts[self.text.labels[str(instruction.operands[0])]]
                    body = [i for one in stretches[target : number + 1] for i in one][:-1]
                    written = _written(code[target:]) if all(map(_may_repeat, body)) else None
                    ending = " return " + self._branch(instruction, target, number + 1, written)
                elif instruction.opcode in ("ret", "exit") and instruction.guard is None:
                    ending = " return -1"
                else:
                    code[-1] += "".join(f"\n {line}" for line in self._translated(instruction))
            code[-1] += "\n" + ending
            self.counts.append(Counter(class_of(i.opcode) for i in stretch))
        self.code = "\n".join(code)
        exec(compile(self.code, f"<{text.name}>", "exec"), self._namespace)
        self.segments = [self._namespace[f"segment{i}"] for i in range(len(stretches))]
        self.at = {i.line: i for i in text.instructions}
        accesses = [i.opcode for i in text.instructions if ".shared" in i.opcode]
        self.granule = 1 if any(opcode.endswith("8") for opcode in accesses) else 2  # bytes, of a check for races

    def _cut(self) -> tuple[list[list[Instruction]], dict[int, int]]:
        """The stretches, and the number of the one that starts at each labelled instruction."""
        stretches: list[list[Instruction]] = [[]]
        starts, targets = {}, set(self.text.labels.values())
        for i, instruction in enumerate(self.text.instructions):
            if i in targets and stretches[-1]:
                stretches.append([])
            if i in targets:
                starts[i] = len(stretches) - 1
            stretches[-1].append(instruction)
            if YIELDS.match(instruction.opcode):
                stretches.append([])
        return stretches[:-1] if not stretches[-1] else stretches, starts

    def _branch(self, instruction: Instruction, target: int, following: int, written: tuple[int, ...] | None) -> str:
        if instruction.guard is None:
            return str(target)
        taken = self._predicate(instruction.guard)
        return f"u.branch({taken}, {target}, {following}, {instruction.line}, {written})"

    def _translated(self, instruction: Instruction) -> list[str]:
        try:
            return self._emit(instruction)
        except (KeyError, IndexError, ValueError, Unsupported) as error:
            raise Unsupported(f"{instruction}: {error!r}") from error

    def _emit(self, i: Instruction) -> list[str]:
        opcode, parts, operands = i.opcode, i.parts, i.operands
        active = self._predicate(i.guard) if i.guard else "None"
        if opcode == "nop":
            return []
        if parts[0] == "mov" and any(isinstance(x, tuple) for x in operands):
            return self._pack(i)
        if opcode in TABLE:
            return self._operation(i, TABLE[opcode])
        if parts[0] in ("ld", "st"):
            return self._access(i, active)
        if opcode in matrix.PRODUCTS:
            unguarded(i)
            results = ", ".join(self._register(x) for x in many(operands[0]))
            lists = ", ".join("[" + ", ".join(self._value(x, "b32") for x in many(o)) + "]" for o in operands[1:])
            return [f"{results}, = PRODUCTS[{opcode!r}](u.n, {lists})"]
        if parts[0] in ("ldmatrix", "stmatrix"):
            unguarded(i)
            return self._matrix_access(i)
        if parts[0] in ("shfl", "redux", "vote") and parts[1] == "sync":
            unguarded(i)
            check = self._whole_warps(operands[-1])
        if parts[:2] == ["shfl", "sync"]:
            arguments = ", ".join(self._value(x, "b32") for x in operands[1:4])
            value, *inside = str(operands[0]).split("|")
            lines = [*check, f"t = shuffle(u.n, {parts[2]!r}, {arguments})", *self._put(None, value, "t[0]", "b32")]
            return lines + [line for name in inside for line in self._put(None, name, "t[1]", "pred")]
        if parts[:2] == ["redux", "sync"]:
            value = f"reduce_warp(u.n, {parts[2]!r}, {self._value(operands[1], parts[3])})"
            return [*check, *self._put(None, operands[0], value, parts[3])]
        if parts[:2] == ["vote", "sync"]:
            kind = "b32" if parts[2] == "ballot" else "pred"
            value = f"vote(u.n, {parts[2]!r}, {self._value(operands[1], 'pred')})"
            return [*check, *self._put(None, operands[0], value, kind)]
        if opcode in ("bar.sync", "barrier.sync", "barrier.cta.sync.aligned", "bar.warp.sync"):
            unguarded(i)
            if opcode == "bar.warp.sync":
                return [*self._whole_warps(operands[0]), "u.barrier(True)"]
            if operands != ("0",):
                raise Unsupported("a barrier of some of the warps")
            return ["u.barrier(False)"]
        if parts[0] in ("atom", "red"):
            return self._atomic(i, active)
        if FENCES.match(opcode):
            return [f"u.fence({active})"]
        if parts[0] == "nanosleep":
            return []
        if parts[:2] == ["cp", "async"]:
            return self._copy(i, active)
        if opcode == "prefetch.global.L2":
            return [f"u.prefetch({self._address(operands[0], 'global')}, {active}, {i.line})"]
        raise Unsupported("an instruction that the machine does not know")

    # -- operands

    def _register(self, name: str) -> str:
        return f"R[{self.registers.setdefault(name, len(self.registers))}]"

    def _predicate(self, name: str) -> str:
        return f"~{self._register(name[1:])}" if name.startswith("!") else self._register(name)

    def _value(self, operand: Operand, kind: str) -> str:
        """The expression that reads an operand as a value of this type."""
        assert isinstance(operand, str), operand
        negated = operand.startswith("!")
        name = operand.lstrip("!")
        if name in SPECIAL:
            return SPECIAL[name]
        if not name.startswith("%"):
            return self._constant(name, kind)
        expression = self._register(name)
        if kind == "pred":
            return f"~{expression}" if negated else expression
        has, bits = width(name), bits_of(kind)
        if has < bits:
            raise Unsupported(f"{name} read as {kind}")
        if kind in values.READERS:
            return f"read({expression}, {kind!r})"
        if has > bits:
            expression += f".astype(np.uint{bits})"
        return expression if kind[0] in "ub" else f"{expression}.view(np.{dtype_of(kind).__name__})"

    def _whole_warps(self, mask: Operand) -> list[str]:
        """What makes sure that all threads of a warp take part."""
        if not str(mask).startswith("%"):
            by_whole_warps(mask)
            return []
        return [f"all_take_part({self._value(mask, 'u32')})"]

    def _constant(self, text: str, kind: str) -> str:
        if kind == "pred":
            return self._named(np.array([int(text) != 0]))
        bits = bits_of(kind)
        if text == "global_smem":
            number = 0
        elif re.match(r"0[fF][0-9a-fA-F]{8}$", text):
            number = int(text[2:], 16)
        elif kind[0] in "bf" and kind != f"b{bits}":
            raise Unsupported(f"the number {text} as {kind}")
        else:
            number = int(text.rstrip("U"), 0) % (1 << bits)
        return self._named(np.array([number], UNSIGNED[bits]).view(dtype_of(kind)))

    def _named(self, array: Array) -> str:
        key = array.dtype.str, array.tobytes()
        name = self._constants.setdefault(key, f"constant{len(self._constants)}")
        self._namespace[name] = array
        return name

    def _address(self, operand: Operand, space: str) -> str:
        """Two arguments: the register, and the offset from it."""
        found = re.match(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]$", str(operand))
        if found is None:
            raise Unsupported(f"the address {operand}")
        return f"{self._value(found[1], 'u64' if space == 'global' else 'u32')}, {int(found[2] or 0)}"

    def _put(self, guard: str | None, result: Operand, expression: str, kind: str) -> list[str]:
        """Write a value of this type to a register, in the threads that the guard names."""
        assert isinstance(result, str)
        if result == "_":
            return []
        if kind in values.WRITERS:
            expression = f"write({expression}, {kind!r})"
        elif kind[0] in "sf":
            expression = f"({expression}).view(np.uint{bits_of(kind)})"
        if kind != "pred" and width(result) > bits_of(kind):  # a narrow value in a wide register keeps its sign
            signed = f".view(np.int{bits_of(kind)}).astype(np.int{width(result)}).view(np.uint{width(result)})"
            expression = f"({expression})" + (signed if kind[0] == "s" else f".astype(np.uint{width(result)})")
        register = self._register(result)
        if guard is None:
            return [f"{register} = {expression}"]
        return [f"{register} = merge({self._predicate(guard)}, {expression}, {register})"]

    # -- instructions

    def _operation(self, i: Instruction, operation: Operation) -> list[str]:
        name = self._functions.setdefault(i.opcode, f"operation{len(self._functions)}")
        self._namespace[name] = operation.function
        arguments = ", ".join(self._value(o, k) for o, k in zip(i.operands[1:], operation.operands, strict=True))
        if len(operation.results) == 1:
            return self._put(i.guard, i.operands[0], f"{name}({arguments})", operation.results[0])
        lines = [f"t = {name}({arguments})"]
        for k, (result, kind) in enumerate(zip(str(i.operands[0]).split("|"), operation.results, strict=True)):
            lines += self._put(i.guard, result, f"t[{k}]", kind)
        return lines

    def _pack(self, i: Instruction) -> list[str]:
        """A register from its parts, or parts from their register."""
        kind, (to, source) = i.parts[-1], i.operands
        bits = bits_of(kind)
        if isinstance(to, tuple):
            step = bits // len(to)
            whole = self._value(source, kind)
            pieces = [f"({whole} >> np.uint{bits}({step * k})).astype(np.uint{step})" for k in range(len(to))]
            return [
                line
                for one, piece in zip(to, pieces, strict=True)
                for line in self._put(i.guard, one, piece, f"b{step}")
            ]
        step = bits // len(source)
        parts = [
            f"({self._value(x, f'b{step}')}.astype(np.uint{bits}) << np.uint{bits}({step * k}))"
            for k, x in enumerate(source)
        ]
        return self._put(i.guard, to, " | ".join(parts), kind)

    def _access(self, i: Instruction, active: str) -> list[str]:
        load, kind = i.parts[0] == "ld", i.parts[-1]
        if "param" in i.parts:
            name = str(i.operands[1]).strip("[] ")
            if bits_of(kind) != 8 * self._parameters[name]:
                raise Unsupported(f"{bits_of(kind)} bits of a parameter with {8 * self._parameters[name]}")
            value = f"u.program.parameters[{name!r}].view(np.{dtype_of(kind).__name__})"
            return self._put(i.guard, i.operands[0], value, kind)
        space = "global" if "global" in i.parts else "shared" if any(p.startswith("shared") for p in i.parts) else ""
        if not space:
            raise Unsupported("an access that does not say to which memory")
        vector = next((int(p[1:]) for p in i.parts if re.match(r"v\d$", p)), 1)
        rest = set(i.parts[1:-1]) - HINTS - set(ORDERED) - {f"v{vector}", "shared", "shared::cta"}
        if rest:
            raise Unsupported(f"{rest}")
        order = next((p for p in i.parts if p in ORDERED), "weak")
        address = self._address(i.operands[1 if load else 0], space)
        registers = many(i.operands[0 if load else 1])
        assert len(registers) == vector, registers
        size = bits_of(kind) // 8
        how = f"{order!r}, " if space == "global" else ""
        if load:
            lines = [f"t = u.load_{space}({address}, {size}, {vector}, {active}, {how}{i.line})"]
            for k, register in enumerate(registers):
                lines += self._put(i.guard, register, f"t[{k}].view(np.{dtype_of(kind).__name__})", kind)
            return lines
        stored = ", ".join(self._value(x, f"b{bits_of(kind)}") for x in registers)
        return [f"u.store_{space}({address}, {size}, [{stored}], {active}, {how}{i.line})"]

    def _matrix_access(self, i: Instruction) -> list[str]:
        if not {"m8n8", "b16"} <= set(i.parts):
            raise Unsupported("a matrix of another shape")
        load = i.parts[0] == "ldmatrix"
        where, registers = (i.operands[1], i.operands[0]) if load else (i.operands[0], i.operands[1])
        each, transposed = many(registers), "trans" in i.parts
        address = self._address(where, "shared")
        if load:
            results = ", ".join(self._register(x) for x in each)
            return [f"{results}, = u.load_matrices({address}, {len(each)}, {transposed}, {i.line})"]
        stored = ", ".join(self._value(x, "b32") for x in each)
        return [f"u.store_matrices({address}, [{stored}], {transposed}, {i.line})"]

    def _atomic(self, i: Instruction, active: str) -> list[str]:
        if "add" not in i.parts or i.parts[-1] not in ("u32", "s32", "b32") or "global" not in i.parts:
            raise Unsupported("an atomic operation that the machine does not know")
        rest = set(i.parts[1:-1]) - {"global", "add", "gpu", "sys"} - set(ORDERED)
        if rest:
            raise Unsupported(f"{rest}")
        order = next((p for p in i.parts if p in ORDERED), "relaxed")
        where, value = i.operands[-2:]
        arguments = f"{self._address(where, 'global')}, {self._value(value, 'u32')}"
        call = f"u.add_atomically({arguments}, {active}, {order!r}, {i.line})"
        return [f"t = {call}", *(self._put(i.guard, i.operands[0], "t", "u32") if i.parts[0] == "atom" else [])]

    def _copy(self, i: Instruction, active: str) -> list[str]:
        if "commit_group" in i.parts:
            return ["u.commit_copies()"]
        if "wait_group" in i.parts or "wait_all" in i.parts:
            return [f"u.wait_for_copies({int(str(i.operands[0]), 0) if 'wait_group' in i.parts else -1})"]
        to, source, size, *given = i.operands
        length = self._value(given[0], "u32") if given else "None"
        addresses = f"{self._address(to, 'shared')}, {self._address(source, 'global')}"
        return [f"u.copy({addresses}, {int(str(size), 0)}, {length}, {active}, {i.line})"]


def _may_repeat(i: Instruction) -> bool:
    """Whether a thread that is through with a loop may execute this again: registers are put back, stores left out."""
    stores = i.parts[0] == "st" and "global" in i.parts
    return i.opcode in TABLE or stores or i.parts[0] in ("ld", "mov", "nop", "nanosleep", "prefetch")


def _written(code: list[str]) -> tuple[int, ...]:
    """Numbers of the registers that these functions write."""
    return tuple(sorted({int(number) for one in code for number in re.findall(r"^ R\[(\d+)\] = ", one, re.M)}))
