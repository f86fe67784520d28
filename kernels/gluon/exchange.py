"""How programs hand each other their columns, once a step: the data is its own flag, and lands in `mma` operands.

A mailbox is filled with a sentinel before the launch, all bits one. Each of its elements is written once, and a reader
loads until no element is the sentinel: a Lamport exchange, as in kernels/triton/exchange.py. All bits one is a NaN
that neither arithmetic nor a conversion yields; a loaded state that holds it is made another NaN (`no_sentinel`).

Here the poll is inline assembly, because what it loads has to stay in the registers where the tensor core reads it: a
lane loads its share of an operand in runs of 16 bytes, and loads again on its own, without a vote or a barrier.

Waits end. A lane that polled `patience` times in vain, or sees in the launch's memory that another one did, goes on
with what it has. That holds the sentinel, a NaN, which goes through the products into all that depends on it. Programs
then end soon, without waiting for one another, and tell the host (`report`).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

RUN = 128  # bits that a lane loads at once


@gluon.constexpr_function
def poll_assembly(tensors, pack, bits):
    """Loads `pack` elements of `bits` bits of each of so many tensors, again until none is the sentinel.

    Operands: the elements; a pointer to each; how many polls are enough; the word that says whether somebody gave up,
    -1 until then; the least number that counts as the sentinel. All but the last test is under way while the elements
    are, and only a second poll has that word loaded, for the third to look at.

    A run of 16 bytes is four words, and `mma` i of four takes the words i of two runs: they are put into neighbouring
    registers, and the weights are loaded in the same order (`place`).
    """
    words, in_run = pack * bits // 32, RUN // bits
    outputs, pointers = words * tensors, pack * tensors
    patience, given_up, sentinel = (outputs + pointers + i * pack for i in range(3))
    text = ["{", ".reg .pred p, q;", ".reg .b32 n, left, others, least;"]
    text += [f"mov.b32 left, ${patience};", "mov.b32 others, -1;", "mov.pred p, 0;", "L:"]
    for tensor in range(tensors):
        for i in range(0, words, 8):
            for j in (0, 2):
                to = [f"${tensor * words + i + k}" for k in (j, j + 4, j + 1, j + 5)]
                at = outputs + tensor * pack + (i // 4 + j // 2) * in_run
                text += [f"ld.relaxed.gpu.global.v4.b32 {{{', '.join(to)}}}, [${at}];"]
    text += [f"@p ld.relaxed.gpu.global.b32 others, [${given_up}];"]
    text += ["setp.eq.and.s32 q, left, 0, p;", "sub.s32 left, left, 1;"]
    text += [f"@q st.relaxed.gpu.global.b32 [${given_up}], 0;", "setp.ne.or.s32 q, others, -1, q;"]
    kind, none = ("u16x2", "0x10000") if bits == 16 else ("u32", "0")
    text += [f"selp.b32 least, {none}, ${sentinel}, q;"]
    largest, lines, names = maximum([f"${i}" for i in range(outputs)], kind)
    text += [f".reg .b32 {', '.join(names)};", *lines]
    if bits == 16:
        text += [f"and.b32 n, {largest}, 65535;", "setp.ge.u32 p, n, least;"]
        text += [f"shr.u32 n, {largest}, 16;", "setp.ge.or.u32 p, n, least, p;"]
    else:
        text += ["setp.ne.u32 q, least, 0;", f"setp.eq.and.u32 p, {largest}, 0xffffffff, q;"]
    return "\n".join([*text, "@p bra L;", "}"])


@gluon.constexpr_function
def maximum(words, kind):
    """(name, lines, names declared): the largest of all words, as a tree of threes, each one instruction in the end."""
    lines, names = [], []
    while len(words) > 1:
        level = []
        for group in (words[i : i + 3] for i in range(0, len(words), 3)):
            while len(group) > 1:
                names.append(f"m{len(names)}")
                lines.append(f"max.{kind} {names[-1]}, {group[0]}, {group[1]};")
                group = [names[-1], *group[2:]]
            level += group
        words = level
    return words[0], lines, names


@gluon.constexpr_function
def poll_constraints(tensors, pack, bits):
    outputs = ["=&r"] * (pack * bits // 32 * tensors)
    return ",".join(outputs + ["l"] * (pack * tensors) + ["r"] * pack + ["l"] * pack + ["r"] * pack)


@gluon.constexpr_function
def types(element, tensors):
    return (element,) * tensors


@gluon.constexpr_function
def never(bits):
    """What `poll` takes for the sentinel where everything is there, whatever it holds."""
    return 0x10000 if bits == 16 else 0


@gluon.constexpr_function
def sentinel(bits):
    """What `poll` takes for the sentinel in a mailbox."""
    return 0xFFFF if bits == 16 else 1


@gluon.jit
def poll(pointers, least, patience, given_up_ptr, PACK: gl.constexpr):
    """What the tuple's tensors of pointers lead to, once it is there: as many tensors."""
    N: gl.constexpr = len(pointers)
    BITS: gl.constexpr = pointers[0].dtype.element_ty.primitive_bitwidth
    return gl.inline_asm_elementwise(
        poll_assembly(N, PACK, BITS),
        poll_constraints(N, PACK, BITS),
        pointers + (patience, given_up_ptr.to(gl.int64), least),  # to int64: pointers of two types do not go together
        dtype=types(pointers[0].dtype.element_ty, N),
        is_pure=False,
        pack=PACK,
    )


@gluon.jit
def publish(pointers, value):
    """Store to a mailbox. Relaxed: the race with the poll is then one that PTX defines.

    Where several threads have the same pointer, they have the same value.
    """
    if value.dtype.primitive_bitwidth == 16:
        bits = value.to(gl.int16, bitcast=True)
        gl.inline_asm_elementwise(
            "st.relaxed.gpu.global.b16 [$1], $2;\nmov.b32 $0, 0;", "=r,l,h", [pointers, bits],
            dtype=gl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        bits = value.to(gl.int32, bitcast=True)
        gl.inline_asm_elementwise(
            "st.relaxed.gpu.global.b32 [$1], $2;\nmov.b32 $0, 0;", "=r,l,r", [pointers, bits],
            dtype=gl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@gluon.jit
def no_sentinel(x):
    """A loaded float32 whose bits are all ones as another NaN."""
    bits = x.to(gl.int32, bitcast=True)
    return gl.where(bits == -1, 0x7FFFFFFF, bits).to(gl.float32, bitcast=True)


@gluon.jit
def report(given_up_ptr, fault_ptr):
    """Set the host's word if a program of this launch gave up."""
    gl.store(fault_ptr, 1, mask=gl.load(given_up_ptr, volatile=True) != -1)
