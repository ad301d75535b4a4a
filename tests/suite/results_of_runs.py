"""What runs leave in their folders, for tests that compare two of them."""

import json


def files_of(folder):
    """Return every file below a folder, by its path within, what machines and times differ in left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith(".locks") or name in ("run.json", "log.jsonl"):
            continue
        found[name] = path.read_bytes() if path.suffix != ".json" else _facts(path)
    return found


def _facts(path):
    facts = json.loads(path.read_text())
    assert facts.pop("seconds", 0.0) >= 0
    facts.pop("checksum", None)
    return facts


def assert_same_results(folder, undisturbed):
    """Assert that two folders hold the same files, and each cell's files the same bytes, times apart."""
    found, wanted = files_of(folder), files_of(undisturbed)
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if found[name] != wanted[name]]
    assert not different
