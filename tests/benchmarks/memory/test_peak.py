from dataclasses import replace

import pytest

from benchmarks.memory.peak import memory


@pytest.mark.slow
def test_memory_grows_with_stored_states_alone(tiny):
    rows = list(memory(replace(tiny, size=16, counts=(128, 1280))))
    growth = rows[-1]
    # 1152 images x 3 x 16 x 16 floats x 20 steps are 67.5 MiB; ours keeps the pixels and what allocators round up.
    assert growth.theirs > 60
    assert growth.ours < 30
    assert len(rows) == 3
