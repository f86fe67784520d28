"""Tiles in words of 32 bits, as they are carried through a loop and handed from program to program.

A word holds WORD elements: two of 16 bits, or one. What is carried as two elements is taken apart as soon as it is
loaded, for which the loop waits; a word stays as it came until it is used. And a word is stored at once: who sees its
second element sees its first. Rows of an odd number of 16-bit elements are no words: there WORD is 1.
"""

import triton
import triton.language as tl

from fastcells.kernels.triton.tiles import cast


@triton.jit
def as_words(ptr, WORD: tl.constexpr):
    """A pointer to the same, counted in words."""
    return ptr.to(tl.pointer_type(tl.uint32), bitcast=True) if WORD == 2 else ptr


@triton.jit
def unpack(words, element: tl.constexpr, WORD: tl.constexpr):
    """Words [R, C] to elements [R, WORD * C]."""
    if WORD == 2:
        low = words.to(tl.uint16).to(element, bitcast=True)
        high = (words >> 16).to(tl.uint16).to(element, bitcast=True)
        elements = tl.reshape(tl.join(low, high), (words.shape[0], 2 * words.shape[1]))
    else:
        elements = words.to(element, bitcast=True)
    return elements


@triton.jit
def apart(words, element: tl.constexpr, WORD: tl.constexpr):
    """The tiles of the words' first and, if there is one, their second elements, each [R, C]."""
    if WORD == 2:
        low = words.to(tl.uint16).to(element, bitcast=True)
        high = (words >> 16).to(tl.uint16).to(element, bitcast=True)
        tiles = (low, high)
    else:
        tiles = (words.to(element, bitcast=True),)
    return tiles


@triton.jit
def pack(x, element: tl.constexpr, WORD: tl.constexpr):
    """float32 [R, WORD * C] to words [R, C] of the element type."""
    if WORD == 2:
        bits = cast(x, element).to(tl.uint16, bitcast=True)
        low, high = tl.split(tl.reshape(bits, (x.shape[0], x.shape[1] // 2, 2)))
        words = (high.to(tl.uint32) << 16) | low.to(tl.uint32)
    else:
        words = cast(x, element)
    return words
