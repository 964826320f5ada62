"""Errors that a user can act on."""


class UserError(ValueError):
    """Reports a mistake that the user can correct.

    The message states what was wrong, where, and what would be right. The command line prints it as
    one line and exits with a non-zero status. Files on disk stay intact.
    """


class WriteError(UserError):
    """Reports a file or folder that could not be written."""
