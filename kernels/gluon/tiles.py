"""What both kernels do with tiles: layouts, the weights in registers, the product, and sums over the parts of K."""

import triton.experimental.gluon.language as gluon_language
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

barrier = gl.barrier if hasattr(gluon_language, "barrier") else gl.thread_barrier  # Triton 3.6 calls it so


@gluon.constexpr_function
def products_layout(split):
    """Of the accumulators, [split, BLOCK_H, BLOCK_B]: each warp has one part of K, and all rows and columns."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[split, 1, 1], instr_shape=[1, 16, 8])


@gluon.constexpr_function
def owners_layout(split, columns, rows):
    """Over [split, columns, rows]: a thread has all parts of an element, and as few elements as there are threads for.

    Lanes lie along the columns, so that a warp's store is of whole sectors of 32 bytes.
    """
    lanes = [[0, 1 << i, 0] for i in range(4)] + [[0, 0, 1]]
    rest = [[0, 0, 1 << i] for i in range(1, rows.bit_length() - 1)]
    rest += [[0, 1 << i, 0] for i in range(4, columns.bit_length() - 1)]
    warps = split.bit_length() - 1
    own = [[1 << i, 0, 0] for i in range(warps)] + rest[warps:]
    spread = rest[:warps] + [[0, 0, 0]] * (warps - len(rest))
    return gl.DistributedLinearLayout(own, lanes, spread, [], [split, columns, rows])


@gluon.constexpr_function
def run_length(bits):
    """Elements in 16 bytes: the k_width of a dot operand whose lanes hold such runs."""
    return 128 // bits


@gluon.constexpr_function
def few_sums(shape):
    """Whether one gate's sums, [SPLIT, BLOCK_H, BLOCK_B], are too few to keep the tensor cores at work in turn.

    A sum waits for its last product as long as four products take, and there are four tensor cores.
    """
    split, columns, rows = shape
    return columns // 16 * (rows // 8) * split < 16


@gluon.constexpr_function
def shared_layout():
    return gl.SwizzledSharedLayout(2, 4, 4, [2, 1, 0])


@gluon.jit
def place(k, BITS: gl.constexpr):
    """Where in a row the poll finds what is column k of its operand: see the order of its registers."""
    WORD: gl.constexpr = 32 // BITS  # elements in a word
    RUN: gl.constexpr = 4 * WORD  # and in 16 bytes
    block = k // (4 * RUN) % 2
    word = k % RUN // WORD
    start = k // (8 * RUN) * (8 * RUN) + word // 2 * (4 * RUN) + k % (4 * RUN) // RUN * RUN
    return start + (word % 2 * 2 + block) * WORD + k % WORD


@gluon.jit
def after(x, y, nothing):
    """x, once y is there: `nothing` is 0, which the compiler does not know.

    Without such a tie ptxas computes one gate's products after another's, each waiting for its own sums.
    """
    bits = x.to(gl.int32, bitcast=True) | (y.to(gl.int32, bitcast=True) & nothing)
    return bits.to(gl.float32, bitcast=True)


@gluon.jit
def round_to_tf32(x):
    return gl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def prepared(x, PRECISION: gl.constexpr):
    """An operand as `product` takes it, where that is the same at each step."""
    if PRECISION == "tf32" and x.dtype == gl.float32:
        return round_to_tf32(x)
    else:
        return x


@gluon.jit
def product(w, x, acc, PRECISION: gl.constexpr):
    """`acc + w @ x` in float32; in "tf32x3" each operand is the sum of two tf32."""
    if w.dtype != gl.float32:
        return mma_v2(w, x, acc)
    elif PRECISION == "tf32":
        return mma_v2(w, x, acc, input_precision="tf32")
    else:
        w_big = round_to_tf32(w)
        x_big = round_to_tf32(x)
        none = gl.zeros_like(acc)
        small = mma_v2(w - w_big, x_big, none, input_precision="tf32")
        small = mma_v2(w_big, x - x_big, small, input_precision="tf32")
        # What is infinite has NaN for its small part; the big parts' product alone says what becomes of it.
        small = gl.where(small == small, small, 0.0)
        return mma_v2(w_big, x_big, acc, input_precision="tf32") + small


@gluon.jit
def load_all(ptr, stride, N: gl.constexpr):
    """What N pointers lead to, one `stride` elements after another, in the tensor's dtype."""
    tiles = ()
    for i in gl.static_range(N):
        tiles += (gl.load(ptr + i * stride),)
    return tiles


@gluon.jit
def prefetch_all(ptr, stride, N: gl.constexpr):
    """Have the L2 fetch what `load_all` of the same is going to load, some steps from now.

    Every program waits for the slowest load of all of them once a step, and what comes from the device's memory is
    slower than a step is long, now and then.
    """
    for i in gl.static_range(N):
        gl.inline_asm_elementwise(
            "prefetch.global.L2 [$1];\nmov.b32 $0, 0;", "=r,l", [ptr + i * stride],
            dtype=gl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@gluon.jit
def to_float32(tiles):
    wide = ()
    for i in gl.static_range(len(tiles)):
        wide += (tiles[i].to(gl.float32),)
    return wide


@gluon.jit
def store_all(ptr, stride, tiles):
    """All tiles, in the tensor's dtype."""
    for i in gl.static_range(len(tiles)):
        gl.store(ptr + i * stride, tiles[i].to(ptr.dtype.element_ty))


@gluon.jit
def freeze_finished(t, length, new, old):
    """`new` in the rows whose sequence has step t, `old` in the others; length None: all have."""
    tiles = ()
    for i in gl.static_range(len(new)):
        tiles += (gl.where(t < length, new[i], old[i]) if length is not None else new[i],)
    return tiles


@gluon.jit
def zero_started(resets_ptr, starts, tiles):
    """The tiles, 0 in the rows where a step starts from zeros; without resets none does."""
    kept = ()
    for i in gl.static_range(len(tiles)):
        kept += (gl.where(starts == 0, tiles[i], 0.0) if resets_ptr is not None else tiles[i],)
    return kept


@gluon.jit
def load_resets(resets_ptr, at, row):
    """Of one step, not 0 in the rows that start from zeros, from element `at` on; without resets nothing is read."""
    return gl.load(resets_ptr + at + row) if resets_ptr is not None else row


@gluon.jit
def unless_started(resets_ptr, starts, source, zeros_ptr, k):
    """Where a poll looks, from column k on: a row that starts from zeros waits for nobody, and reads zeros."""
    return gl.where(starts == 0, source, zeros_ptr + k) if resets_ptr is not None else source


@gluon.jit
def load_weights(
    w_ptr, column, TRANSPOSED: gl.constexpr, H: gl.constexpr, GATES: gl.constexpr, BLOCK_H: gl.constexpr,
    SPLIT: gl.constexpr, BLOCK_K: gl.constexpr, INNER: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    """Each gate's [SPLIT, BLOCK_H, BLOCK_K] for each of the INNER parts of what a warp multiplies; 0 past H.

    column: the first one of the program; TRANSPOSED: of the weights' columns, not of their rows.
    """
    BITS: gl.constexpr = w_ptr.dtype.element_ty.primitive_bitwidth
    LAYOUT: gl.constexpr = gl.DotOperandLayout(0, products_layout(SPLIT), run_length(BITS))
    warp = gl.arange(0, SPLIT, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    own = column + gl.arange(0, BLOCK_H, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    own = gl.minimum(own, H - 1)
    k = place(gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT))), BITS)[None, None, :]
    WHOLE: gl.constexpr = SPLIT * INNER * BLOCK_K == H
    w = ()
    for g in gl.static_range(GATES):
        for part in gl.static_range(INNER):
            at = (warp * INNER + part) * BLOCK_K + k
            pointers = w_ptr + g * H * H + (at * H + own if TRANSPOSED else own * H + at)
            tile = gl.load(pointers) if WHOLE else gl.load(pointers, mask=at < H, other=0.0)
            w += (prepared(tile, PRECISION),)
            if TRANSPOSED and INNER > 1:
                barrier()  # of the elements loaded one by one, those of a single part are in registers
    return w


@gluon.jit
def polled(SPLIT: gl.constexpr, BLOCK_K: gl.constexpr, INNER: gl.constexpr, BLOCK_B: gl.constexpr, BITS: gl.constexpr):
    """(row, column) of a thread's share of a warp's first operand, [SPLIT, BLOCK_K, BLOCK_B]."""
    LAYOUT: gl.constexpr = gl.DotOperandLayout(1, products_layout(SPLIT), run_length(BITS))
    warp = gl.arange(0, SPLIT, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    k = gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    row = gl.arange(0, BLOCK_B, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]
    return row, warp * (INNER * BLOCK_K) + k


@gluon.jit
def owned(column, H: gl.constexpr, BLOCK_H: gl.constexpr, BLOCK_B: gl.constexpr, SPLIT: gl.constexpr):
    """(row, column) of a thread's elements, [BLOCK_H, BLOCK_B]; column: the first one of the program."""
    LAYOUT: gl.constexpr = gl.SliceLayout(0, owners_layout(SPLIT, BLOCK_H, BLOCK_B))
    cols = column + gl.arange(0, BLOCK_H, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    return gl.arange(0, BLOCK_B, layout=gl.SliceLayout(0, LAYOUT))[None, :], gl.minimum(cols, H - 1)


@gluon.jit
def offsets(row, cols, H: gl.constexpr, GATES: gl.constexpr, SAVED: gl.constexpr):
    """Of a thread's elements in a [B, H], a [B, GATES, H] and a [B, SAVED, H] plane."""
    return row * H + cols, row * (GATES * H) + cols, row * (SAVED * H) + cols
