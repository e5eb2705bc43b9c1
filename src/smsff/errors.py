"""Errors meant for the person who runs smsff."""


class UserError(ValueError):
    """Bad input: the message names the config key or the file and says what to do; shown without a traceback."""


class RunError(RuntimeError):
    """A fault that ended a run: one sentence, without a traceback, and an exit status of its own.

    Attributes:
        status: Exit status, one of those below.
    """

    NUMBERS = 1
    STORAGE = 3
    PROCESS = 4
    MEMORY = 5

    def __init__(self, message: str, *, status: int = NUMBERS) -> None:  # a default: unpickled, it is set afterwards
        super().__init__(message)
        self.status = status


def first_line(error: BaseException, *, at_most: int | None = None) -> str:
    """The first line of an error's message, cut to `at_most` characters; the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:at_most]


def shown(value: object) -> str:
    """A value as it stands in a message: on one line, and short whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or something nested without end
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."
