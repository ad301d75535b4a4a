"""Records of JSON that a test changes as a stranger, or a later version, might have."""

import json
from contextlib import contextmanager


@contextmanager
def edited(path):
    """Give the content of a file of JSON, and write it back with what was changed in it."""
    facts = json.loads(path.read_text())
    yield facts
    path.write_text(json.dumps(facts))
