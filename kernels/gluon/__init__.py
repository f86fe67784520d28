"""Recurrent kernels in Gluon: weights in registers, and an exchange that lands where the tensor core reads."""
