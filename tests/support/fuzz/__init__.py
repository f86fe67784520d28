"""Random calls across the boundary between Python and C, right ones and wrong ones: `calls` makes and judges them."""
