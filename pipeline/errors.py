"""The one exception that a user can put right."""


class UserError(Exception):
    """A wrong input or option: the message says what is wrong, where, and what to do.

    The command line prints the message as one line and exits with 1; any other exception is a bug
    and keeps its traceback.
    """
