"""The implementation `impl="gluon"`."""
