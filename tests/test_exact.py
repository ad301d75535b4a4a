"""The exact denoiser of CIFAR-10, without its images: the sign of the norm's gap is the sampler's."""

import pytest

from bench.diffusion.solvers import Ancestral
from bench.exact import gaps, law_of, main


def test_the_table_says_what_needs_the_images(capsys):
    assert main(["--dataset", "cifar10", "--steps", "10", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 3 * 2
    assert "--data-dir" in lines[2]
    assert "| ddpm, fixed-small | 10 | -0.5" in lines[3]
    assert "| ddpm, fixed-large | 10 | +16.2" in lines[5]


def test_the_learned_variance_of_the_digits():
    norm, _, variance = gaps(law_of("digits", None), 10, Ancestral("learned"))
    assert (norm, variance) == (pytest.approx(1.009, abs=0.001), pytest.approx(0.79, abs=0.01))


@pytest.mark.parametrize("steps", ["1", "1001", "ten"])
def test_other_step_counts_are_refused(steps, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--steps", steps])
    assert len(capsys.readouterr().err.splitlines()) == 1
