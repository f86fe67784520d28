"""Both directions of a layer in one launch: the grid's third axis says which one a program belongs to.

Each tensor then has a leading dimension of 2, but for the token ids and the lengths, which both read. A direction's
rows lie behind the other's, so that all its planes are one number of rows away. Programs of one direction wait for
none of the other, and run beside them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def own_direction(T, B, DIRECTIONS: gl.constexpr):
    """(0 or 1; its first row of a [T * B, ...] plane; B), as 64 bits."""
    zero = gl.to_tensor(0).to(gl.int64)
    direction = zero + gl.program_id(2) if DIRECTIONS == 2 else zero
    return direction, direction * T * B, zero + B


@gluon.jit
def walk(T, batch, direction, DESCENDING: gl.constexpr, DIRECTIONS: gl.constexpr):
    """(first step, what leads to the next one: 1 or -1, the same in rows of a [T * B, ...] plane).

    DESCENDING: of the first direction; the other goes against it.
    """
    if DIRECTIONS == 2:
        down = direction.to(gl.int32) ^ (1 if DESCENDING else 0)
        turn = 1 - 2 * down
        return down * (T - 1), turn, batch * turn
    elif DESCENDING:
        return T - 1, gl.to_tensor(-1), -batch
    else:
        return T * 0, gl.to_tensor(1), batch
