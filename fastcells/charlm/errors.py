"""What a user can put right; the command line prints it without a traceback."""


class InputError(ValueError):
    """A corpus, option, prefix or run folder that cannot be used. The message names the value and the way out."""
