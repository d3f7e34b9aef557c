"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in the input: the message names the file, the utterance and the fix.

    The command line prints it without a traceback and exits with status 1.
    """
