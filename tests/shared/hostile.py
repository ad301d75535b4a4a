"""What a stranger's pickle may hold."""

import os


class Call:
    """Pickled as the call of any importable function; read the usual way, it is called."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def touch(path):
    """Return what makes a file where it is unpickled the usual way."""
    return Call(os.system, f"touch {path}")
