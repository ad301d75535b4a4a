"""Parametrized tests whose first cases run always and whose further cases run with ``-m ci``."""

import pytest


def at_first(cases, count):
    """Return cases for ``parametrize``: the first few as they are, the others marked ``ci``."""
    listed = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=pytest.mark.ci if k >= count else ()) for k, case in enumerate(listed)]
