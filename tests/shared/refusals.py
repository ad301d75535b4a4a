"""What a mistake of the user must lead to: one printable line, and exit code 2."""

from collections import namedtuple

import pytest


class Outcome(namedtuple("Outcome", "code out err")):
    """How a command ended."""

    def refused(self, *words):
        """Return whether it ended with code 2 and one printable line of error, which has these words."""
        line = self.err.removesuffix("\n")
        is_one_line = line.startswith("error: ") and line.isprintable()
        return self.code == 2 and is_one_line and all(str(word) in line for word in words)


def outcome_of(capsys, command, *args):
    """Call a command with its arguments as texts; return how it ended."""
    capsys.readouterr()
    try:
        code = command([str(arg) for arg in args])
    except SystemExit as stop:
        code = stop.code
    return Outcome(code, *capsys.readouterr())


def refusal(error, act, *args, match=None, **options):
    """Return the message of the error that a call must raise: one printable line of readable length."""
    with pytest.raises(error, match=match) as caught:
        act(*args, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


def refusal_of_file(error, act, path, *args, match=None):
    """Return the message as above, which names the file once."""
    message = refusal(error, act, path, *args, match=match)
    assert message.count(str(path)) == 1
    return message
