"""What `impl="auto"` knows of this device: which implementation is right and fastest for a kind of call.

dispatch asks `verdicts`, which remembers (`memory`) or has a `trial` run on a made-up `problem` of that `kind`.
"""
