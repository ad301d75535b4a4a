import pytest
from refusals import outcome_of

from bench.models.train.__main__ import main, parse_arguments

BAD_ARGUMENTS = [
    ("--device foo", "'foo' cannot be used here"),
    ("--device meta", "'meta' cannot be used here"),
    ("--threads 0", "must be a whole number from 1"),
    ("--weight-decay -1", "must be a finite number of at least 0, not '-1'"),
    ("--gradient-penalty nan", "must be a finite number of at least 0, not 'nan'"),
    ("--gamma-schedule linaer", "argument --gamma-schedule: invalid choice: 'linaer'"),
    ("--dream-power -1", "must be a finite number of at least 0, not '-1'"),
    ("--scheduled-sampling 1.01", "must be a share from 0 to 1, not '1.01'"),
    ("--scheduled-sampling 0.5 --rollout-stride 1000", "must be a whole number from 1 to 999"),
    ("--gamma 0.1", "--gamma has no effect on the recipe adm"),
    ("--rollout-stride 2", "--rollout-stride has no effect on the recipe adm"),
    ("--recipe adm-mdss --scheduled-sampling 0 --rollout-stride 2", "--rollout-stride has no effect on the recipe"),
    ("--recipe edm --gamma-schedule linear", "--gamma-schedule has no effect on the recipe edm"),
    ("--recipe edm --slowed 0.1", "--slowed has no effect on the recipe edm"),
    ("--slowed 1.1", "must be a share from 0 to 1"),
    ("--recipe edm --gamma 0.1", "--gamma has no effect on the recipe edm"),
    ("--recipe edm --scheduled-sampling 0.1", "--scheduled-sampling has no effect on the recipe edm"),
    ("--keep-every 0", "must be a whole number from 50"),
    ("--keep-every 75", "must be a multiple of 50, not '75'"),
    ("--compile maybe", "argument --compile: invalid choice: 'maybe'"),
    ("--data-dir somewhere", "--data-dir has no effect on the recipe adm, whose digits are embedded"),
    ("--recipe cifar10/adm-pi", "unknown recipe 'cifar10/adm-pi'; did you mean 'cifar10/adm-ip'?"),
    ("--seed -1", "must be a whole number from 0"),
    ("--recipe amd-ip", "unknown recipe 'amd-ip'; did you mean 'adm-ip'?"),
    ("--recipe nonsense", "unknown recipe 'nonsense'; known: adm, adm-cond, adm-dream,"),
    ("--nonsense", "unrecognized arguments: --nonsense"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[words for words, _ in BAD_ARGUMENTS])
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    found = outcome_of(capsys, main, "--recipe", "adm", "--quiet", "--out", out, *arguments.split())
    assert found.refused(message), found
    assert found.out == ""
    assert not out.exists()


def test_a_stride_belongs_to_scheduled_sampling():
    for words in ("--recipe adm --scheduled-sampling 0.5 --rollout-stride 7", "--recipe adm-mdss --rollout-stride 7"):
        assert parse_arguments(words.split()).rollout_stride == 7
