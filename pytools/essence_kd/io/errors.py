"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in the input: the message names the file, the utterance and the fix.

    The command line prints it without a traceback and exits with status 1.

    >>> from essence_kd import UserError, read_posteriors
    >>> try:
    ...     list(read_posteriors("scp:nothing.scp"))
    ... except UserError as error:
    ...     print(str(error).splitlines() == [str(error)], "nothing.scp" in str(error))
    True True
    """
