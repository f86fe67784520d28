"""A cell of the user's own: its equations, written once in torch, become layers, gradients and kernels."""
