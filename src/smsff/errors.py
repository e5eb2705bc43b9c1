"""Errors meant for the person who runs smsff."""


class UserError(ValueError):
    """Bad input: the message names the config key or the file and says what to do; shown without a traceback."""
