"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input: an unknown name, an impossible value, missing data, a method that does not fit the stream.

    `main.py` prints the message as one line on stderr and exits with status 2. The message says what was wrong,
    what was expected and what to do. A defect of ours is never a UserError: it keeps its traceback.
    """


class TrainingFailed(Exception):
    """The run itself went wrong, as a loss that is no longer finite; `main.py` prints one line and exits with
    status 1.
    """
