"""Errors that are for people."""


class UserError(ValueError):
    """Something a user can mend: the message says what was wrong, where, and what would be right.

    The command line prints it as one line and exits with a non-zero status; nothing on disk is lost.
    """
