"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in the input: the message names the file, the utterance and the fix.

    The command line prints it without a traceback and exits with status 1. Names and lines of files stand in it as
    they are; as text it is one line, in which what cannot be seen stands as an escape.

    >>> from essence_kd import UserError, read_posteriors
    >>> try:
    ...     list(read_posteriors("scp:nothing.scp"))
    ... except UserError as error:
    ...     print(str(error).splitlines() == [str(error)], "nothing.scp" in str(error))
    True True
    >>> print(UserError("no word 'a\\nb'"))
    no word 'a\\nb'
    """

    def __str__(self) -> str:
        from essence_kd.io.text import visible

        return visible(super().__str__())


def ended(status: int) -> str:
    """How a process ended: "ended with status 3", "was killed by SIGKILL (out of memory?)".

    ``status`` is negative for a signal, as in subprocess, or above 128, as in a shell.
    """
    import signal

    number = -status if status < 0 else status - 128
    if 0 < number < 65:
        try:
            name = signal.Signals(number).name
        except ValueError:  # without a name of its own
            name = f"signal {number}"
        why = {"SIGKILL": " (out of memory?)", "SIGBUS": " (/dev/shm or the disk is full?)"}
        return f"was killed by {name}{why.get(name, '')}"
    return f"ended with status {status}"
