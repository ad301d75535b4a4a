import csv
import dataclasses

import pytest
import torch
from cases import at_first
from refusals import outcome_of
from safetensors.torch import load_file
from trainings import CPU, NETWORK, short

from bench.data import load
from bench.diffusion.noise import Noise, Purpose, uniform_words
from bench.models.checkpoints.native import load_network, read_description
from bench.models.checkpoints.state_dicts import file_hash
from bench.models.train import trainer as training
from bench.models.train.__main__ import main
from bench.models.train.objectives import edm_loss, flow_loss, gradient_penalty, make_pair, slowed
from bench.models.train.recipes import CONTINUOUS, NETWORKS, RECIPES
from bench.models.train.trainer import Batches, Trainer, learning_rate, train
from bench.runtime.errors import CheckpointError

EDM_NETWORK = NETWORK | {"out_channels": 1}


def rows(folder):
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(a, b):
    """Compare nested states bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Killed(Exception):
    """Stands for the plug being pulled."""


@pytest.fixture
def interrupted(monkeypatch):
    """Pull the plug before iteration 3, having logged each iteration and saved every second one."""
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr(training, "_SAVE_EVERY", 2)
    monkeypatch.setattr("bench.models.train.batches._HISTORY", 1)

    def run(*args):
        def at(self, iteration, whole=Batches.at):
            if iteration == 3:
                raise Killed
            return whole(self, iteration)

        with monkeypatch.context() as patch:
            patch.setattr(Batches, "at", at)
            with pytest.raises(Killed):
                train(*args)

    return run


HISTORY = {"T": 4, "index_sampling": "loss-second-moment"}
VARIANTS = [("adm", HISTORY)] + [(name, {}) for name in ("adm-mdss", "flow", "adm-ip-t", "adm-gp", "adm-dream", "edm")]


@pytest.mark.parametrize(("name", "changes"), at_first([("adm-wd", {"dropout": 0.5}), *VARIANTS], 4))
def test_a_resumed_training_equals_an_undisturbed_one_bit_for_bit(tmp_path, images, interrupted, name, changes):
    recipe, torn, whole = short(name, **changes), tmp_path / "torn", tmp_path / "whole"
    interrupted(recipe, torn, CPU, True, images)
    assert (torch.load(torn / "resume.pt")["iteration"], len(rows(torn))) == (2, 3)
    resumed, undisturbed = (train(recipe, folder, CPU, True, images) for folder in (torn, whole))
    assert resumed.read_bytes() == undisturbed.read_bytes()
    assert same(torch.load(torn / "resume.pt"), torch.load(whole / "resume.pt"))
    assert (torn / "loss.csv").read_bytes() == (whole / "loss.csv").read_bytes()
    description = read_description(resumed)
    assert description.network["dropout"] == changes.get("dropout", 0.0)
    assert description.frame == {"edm": "edm", "flow": "flow"}.get(name, "vp")
    assert description.learns_variance == (RECIPES[name].objective not in CONTINUOUS)


def test_a_finished_training_is_left_as_it_is_and_started_again_starts_its_log_again(tmp_path, images):
    recipe = short("adm", 2)
    first = train(recipe, tmp_path, CPU, True, images).read_bytes()
    for name in ("none", "resume.pt"):
        (tmp_path / name).unlink(missing_ok=True)
        assert train(recipe, tmp_path, CPU, True, images).read_bytes() == first
        assert [row["iteration"] for row in rows(tmp_path)] == ["2"]


def test_a_training_at_a_constant_rate_goes_on_as_a_longer_one(tmp_path, images):
    """Beyond its end it is what the longer training is, bit for bit."""
    on, whole = tmp_path / "on", tmp_path / "whole"
    train(short("adm", 2, decay="constant"), on, CPU, True, images)
    longer = short("adm", 4, decay="constant")
    assert train(longer, on, CPU, True, images).read_bytes() == train(longer, whole, CPU, True, images).read_bytes()
    assert [row["iteration"] for row in rows(on)] == ["2", "4"]


@pytest.mark.parametrize("changes", [{}, {"decay": "constant", "scheduled_sampling": 0.5}])
def test_a_training_whose_steps_depend_on_its_length_does_not_go_on(tmp_path, images, changes):
    train(short("adm", 1, **changes), tmp_path, CPU, True, images)
    with pytest.raises(CheckpointError, match="another recipe"):
        train(short("adm", 2, **changes), tmp_path, CPU, True, images)


def test_until_its_history_is_full_indices_are_the_uniform_ones(images):
    plain, weighted = (
        Trainer(short("adm", **more), NETWORK, CPU) for more in ({}, {"index_sampling": "loss-second-moment"})
    )
    numbers = torch.arange(200)
    t, weights = weighted._indices(numbers)
    assert torch.equal(t, plain._indices(numbers)[0])
    assert (weights == 1).all()
    losses = [trainer.step(images[:4], torch.arange(4)) for trainer in (plain, weighted)]
    assert (losses[0].mse.item(), weighted.index_sampler.counts.sum()) == (losses[1].mse.item(), 4)


def test_the_log_holds_window_means(tmp_path, images, monkeypatch):
    """Means of float32 losses, written as the nearest decimal: 1e-6 relative."""
    seen, step = [], Trainer.step

    def spy(self, x0, numbers, labels):
        losses = step(self, x0, numbers)
        seen.append([losses.mse.item(), losses.bound.item(), losses.penalty.item()])
        return losses

    monkeypatch.setattr(training, "LOG_EVERY", 2)
    monkeypatch.setattr(Trainer, "step", spy)
    train(short("adm-gp"), tmp_path, CPU, True, images)
    assert [(row["iteration"], row["images"]) for row in rows(tmp_path)] == [("2", "8"), ("4", "16")]
    for k, row in enumerate(rows(tmp_path)):
        means = torch.tensor(seen[2 * k : 2 * k + 2]).mean(0).tolist()
        assert [float(row[name]) for name in ("mse", "bound", "penalty")] == pytest.approx(means, rel=1e-6)
        assert min(means) > 0


def test_the_written_checkpoint_is_the_average_and_describes_itself(tmp_path, images):
    """The images decide the channels."""
    recipe = short("adm-ip", 2)
    path = train(recipe, tmp_path, CPU, True, images.expand(-1, 3, -1, -1))
    assert path == tmp_path / "adm-ip.safetensors"
    average = torch.load(tmp_path / "resume.pt")["average"]
    assert same(load_file(path), {name: tensor.half() for name, tensor in average.items()})
    description = read_description(path)
    assert (description.schedule, description.T) == ("cosine", 1000)
    assert (description.network["in_channels"], description.network["out_channels"]) == (3, 6)
    assert description.training == dataclasses.asdict(recipe)
    load_network(path, description)


def test_every_draw_belongs_to_the_images_running_number(images, monkeypatch):
    """Index, noise, perturbation and probe are pure functions of (seed, running number), whatever came before."""
    pairs, probes = [], []
    monkeypatch.setattr(training, "make_pair", lambda *args: pairs.append(args[3:6]) or make_pair(*args))
    monkeypatch.setattr(training, "gradient_penalty", lambda *args: probes.append(args[3]) or gradient_penalty(*args))
    Trainer(short("adm-gp", seed=3), NETWORK, CPU).step(*Batches(images, 4, 3).at(5))
    noise, numbers = Noise(3), torch.arange(20, 24)
    ((t, drawn, xi),), (probe,) = pairs, probes
    assert torch.equal(t, noise.integers(numbers, Purpose.TRAIN_INDEX, 0, 1000))
    assert torch.equal(drawn, noise.normal(numbers, Purpose.TRAIN_NOISE, 0, (1, 8, 8)))
    assert torch.equal(xi, noise.normal(numbers, Purpose.TRAIN_PERTURBATION, 0, (1, 8, 8)))
    assert torch.equal(probe, noise.normal(numbers[:1], Purpose.TRAIN_PROBE, 0, (1, 8, 8)))


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_continuous_recipes_draw_levels_where_others_draw_indices(images, monkeypatch, name):
    """Of EDM a normal number; of a flow the time whose thousandths are the index of others."""
    seen, real = [], {"edm": edm_loss, "flow": flow_loss}[name]
    monkeypatch.setattr(training, f"{name}_loss", lambda *args: seen.append(args[1:]) or real(*args))
    losses = Trainer(short(name, seed=3), EDM_NETWORK, CPU).step(*Batches(images, 4, 3).at(5))
    noise, numbers = Noise(3), torch.arange(20, 24)
    ((x0, level, drawn, *label),) = seen
    assert torch.equal(x0, Batches(images, 4, 3).at(5)[0])
    if name == "edm":
        assert torch.equal(level, noise.normal(numbers, Purpose.TRAIN_INDEX, 0, (1,)).flatten())
    else:
        assert torch.equal((1000 * level).long(), noise.integers(numbers, Purpose.TRAIN_INDEX, 0, 1000))
        assert label == [None]
    assert torch.equal(drawn, noise.normal(numbers, Purpose.TRAIN_NOISE, 0, (1, 8, 8)))
    assert losses.mse > 0
    assert losses.bound == losses.penalty == 0


@pytest.mark.parametrize("name", ["flow-mix", "adm-mix"])
def test_mixflow_shows_noisier_inputs_than_it_tells(images, monkeypatch, name):
    """The input's time lies in [t, t + .8 (1 - t)] of its label t, and both are the draws of the running numbers."""
    asked, stood = [], []
    is_flow = name == "flow-mix"
    monkeypatch.setattr(Trainer, "learn", lambda self, x, t, labels=None: asked.append(t) or self.predict(x, t, labels))
    monkeypatch.setattr(training, "make_pair", lambda *args: stood.append(args[3]) or make_pair(*args))
    monkeypatch.setattr(training, "flow_loss", lambda *args: stood.append(1000 * args[2]) or flow_loss(*args))
    Trainer(short(name, seed=3), EDM_NETWORK if is_flow else NETWORK, CPU).step(*Batches(images, 4, 3).at(5))
    words = uniform_words(3, torch.arange(20, 24), Purpose.TRAIN_INDEX, 0, 1)[:, :, 0].double() * 2.0**-32
    label, time = (1000 * values for values in slowed(words[:, 0], words[:, 1], 0.8))
    assert (label < time).all()
    assert (time <= label + 0.8 * (1000 - label)).all()
    if not is_flow:
        label, time = label.long(), time.long()
    torch.testing.assert_close(asked[0].double(), label.double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(stood[0].double(), time.double(), atol=1e-3, rtol=0)


def test_a_training_starts_from_finished_weights_and_says_so(tmp_path, images):
    first = train(short("adm", 2), tmp_path / "first", CPU, True, images)
    trainer = Trainer(short("adm-ip"), NETWORK, CPU)
    trainer.begin(first, read_description(first))
    weights = load_file(first)
    for network in (trainer.network, trainer.average):
        assert all(torch.equal(tensor.half(), weights[key]) for key, tensor in network.state_dict().items())
    second = train(short("adm-ip", 2), tmp_path / "second", CPU, True, images, start=first)
    assert read_description(second).training["start"] == file_hash(first)
    with pytest.raises(CheckpointError, match="another recipe"):  # not the same training without that start
        train(short("adm-ip", 2), tmp_path / "second", CPU, True, images)


@pytest.mark.parametrize(("name", "message"), [("flow", "choose another --start"), ("absent", "no such file")])
def test_weights_that_a_recipe_cannot_start_from(tmp_path, images, name, message):
    start = tmp_path / "absent.safetensors"
    if name == "flow":
        start = train(short("flow", 1), tmp_path / "flow", CPU, True, images)
    with pytest.raises(CheckpointError, match=message):
        train(short("adm", 1), tmp_path / "out", CPU, True, images, start=start)
    assert not (tmp_path / "out").exists()


def one_step(recipe, images):
    """Return the weights before and after an iteration, and the trainer."""
    trainer = Trainer(recipe, NETWORK, CPU)
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    trainer.step(*Batches(images, recipe.batch, recipe.seed).at(0))
    return before, [parameter.detach() for parameter in trainer.network.parameters()], trainer


def test_weight_decay_is_decoupled(images):
    """Against the plain recipe, one step shrinks each weight by rate * lambda; float32 weights below 2: 2.4e-7."""
    recipe = short("adm-wd", learning_rate=0.5, warmup=1)
    plain = dataclasses.replace(recipe, weight_decay=0.0)
    (before, decayed, _), (_, bare, _) = one_step(recipe, images), one_step(plain, images)
    for start, a, b in zip(before, decayed, bare, strict=True):
        torch.testing.assert_close(a - b, -0.5 * recipe.weight_decay * start, rtol=0, atol=5e-7)


def test_the_average_warms_up(images):
    """After one iteration it is a tenth of the start and nine of the new weights (float32: 1e-7)."""
    before, after, trainer = one_step(short("adm"), images)
    for start, end, average in zip(before, after, trainer.average.parameters(), strict=True):
        torch.testing.assert_close(average, 0.1 * start + 0.9 * end, rtol=0, atol=3e-7)
        assert not average.requires_grad


def test_a_tenth_of_the_labels_is_dropped_and_the_others_are_the_images_own(images):
    """Of 4000 labels 400 are the null class, within five standard deviations: 5 sqrt(4000 .1 .9) = 95."""
    labels = torch.arange(10) % 3
    trainer = Trainer(short("adm-cond"), NETWORK | {"num_classes": 4}, CPU)
    numbers = torch.arange(4000)
    given = trainer._with_null(labels[numbers % 10], numbers)
    dropped = given == 3
    assert abs(int(dropped.sum()) - 400) < 95
    assert torch.equal(given[~dropped], labels[numbers % 10][~dropped])
    x0, numbers, chosen = Batches(images, 7, 0, labels=labels).at(2)
    assert [int(label) for label in chosen] == [int(labels[(images == image).flatten(1).all(1)]) for image in x0]
    assert trainer._with_null(None, numbers) is None


def test_a_conditional_training_reaches_the_embedding_of_each_label_it_sees(images, tmp_path):
    """The file has a class more than the data; labels of None train a network without any."""
    recipe, labels = short("adm-cond", 2), torch.arange(10) % 3
    path = train(recipe, tmp_path, CPU, True, images, labels)
    description = read_description(path)
    assert (description.classes, description.training["label_dropout"]) == (4, 0.1)
    assert "num_classes" not in read_description(train(short("adm", 2), tmp_path / "plain", CPU, True, images)).network
    one = Trainer(recipe, dict(description.network), CPU)
    before = one.network.class_embedding.weight.detach().clone()
    one.step(images[:2], torch.arange(2), torch.tensor([0, 2]))
    weight = one.network.class_embedding.weight
    moved = (weight != before).any(1) & (weight.grad != 0).any(1)
    given = one._with_null(torch.tensor([0, 2]), torch.arange(2))
    assert set(moved.nonzero().flatten().tolist()) == set(given.tolist())


def test_a_tenth_of_the_times_is_not_told_and_trains_the_embedding_of_none(images, tmp_path):
    """Of 4000 times 400 are dropped, within five standard deviations; the others, and all initial weights, stay."""
    description = read_description(train(short("adm-null-time", 1), tmp_path, CPU, True, images))
    assert description.network["null_time"]
    trainer = Trainer(short("adm-null-time"), dict(description.network), CPU)
    plain = Trainer(short("adm"), dict(description.network) | {"null_time": False}, CPU)
    weights = dict(trainer.network.named_parameters())
    null = weights.pop("time_proj.null")
    assert same(weights, dict(plain.network.named_parameters()))
    numbers = torch.arange(4000)
    t = trainer._indices(numbers)[0]
    told = trainer._without_some(t, numbers)
    assert abs(int((told == -1).sum()) - 400) < 95
    assert torch.equal(told[told != -1], t[told != -1])
    dropped, kept = numbers[told == -1][:2], numbers[told != -1][:2]
    trainer.step(images[:2], kept)
    assert not null.any()
    trainer.step(images[:2], dropped)
    assert null.any()


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (7, 7), (3, 5), (12, 1)])
def test_every_epoch_shows_each_image_once(size, batch):
    marked = torch.arange(float(size)).reshape(-1, 1, 1, 1)
    batches = Batches(marked, batch, seed=0)
    epochs = 5
    stream = torch.cat([batches.at(k)[0] for k in range(-(-epochs * size // batch))]).flatten()
    orders = stream[: epochs * size].reshape(epochs, size)
    assert torch.equal(orders.sort(dim=1).values, marked.flatten().expand(epochs, size))
    assert len({tuple(order.tolist()) for order in orders}) > 1  # shuffled anew


def test_batches_are_a_function_of_the_iteration_alone(images):
    straight, jumping = Batches(images, 4, 0), Batches(images, 4, 0)
    expected = [straight.at(k) for k in range(8)]
    for k in (7, 0, 3, 2):
        x0, numbers, _ = jumping.at(k)
        assert torch.equal(x0, expected[k][0])
        assert numbers.tolist() == list(range(4 * k, 4 * k + 4))
    assert not torch.equal(Batches(images, 10, 1).at(0)[0], Batches(images, 10, 0).at(0)[0])


def test_the_learning_rate_rises_then_falls_to_a_hundredth():
    """Linear in both parts: float64 products of a few factors, 1e-12."""
    recipe = dataclasses.replace(RECIPES["adm"], iterations=1000, warmup=50, learning_rate=2.0)
    rates = torch.tensor([learning_rate(recipe, k) for k in range(1001)], dtype=torch.float64)
    assert rates[0].item() == pytest.approx(2.0 / 50, rel=1e-12)
    assert rates[49].item() == pytest.approx(2.0 * (1 - 0.99 * 49 / 1000), rel=1e-12)
    assert rates[1000].item() == pytest.approx(0.02, rel=1e-12)
    assert (rates[:50].diff() > 0).all()
    torch.testing.assert_close(rates[49:].diff(), torch.full((951,), -0.99 * 2 / 1000).double(), rtol=1e-6, atol=0)


def test_the_optimiser_follows_the_learning_rate(images):
    recipe = short("adm", warmup=2)
    trainer, batches = Trainer(recipe, NETWORK, CPU), Batches(images, 4, 0)
    for iteration in range(3):
        trainer.step(*batches.at(iteration))
        assert trainer.optimizer.param_groups[0]["lr"] == learning_rate(recipe, iteration)


def test_the_command_line_trains_and_refuses_another_recipes_folder(tmp_path, capsys):
    common = ["--out", tmp_path, "--quiet", "--iterations", "1"]
    path = tmp_path / "adm.safetensors"
    assert outcome_of(capsys, main, "--recipe", "adm", *common)[:2] == (0, f"{path}\n")
    told = {"data": "digits-train (1442)", "data_hash": load("digits").content_hash()}
    wanted = dataclasses.asdict(dataclasses.replace(RECIPES["adm"], iterations=1))
    assert read_description(path).training == wanted | told
    for arguments in (["--recipe", "adm-ip", *common], ["--recipe", "adm", *common, "--seed", "1"]):
        found = outcome_of(capsys, main, *arguments)
        assert (found.out, found.refused("written by another recipe")) == ("", True)


def test_resuming_with_other_channels_is_refused(tmp_path, images):
    recipe = short("adm", 1)
    train(recipe, tmp_path, CPU, True, images)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"^.*belongs to another network.*\Z"):
        train(recipe, tmp_path, CPU, True, images.expand(-1, 3, -1, -1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_checkpoints_on_the_way_say_how_many_images_they_have_seen(tmp_path, images, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    recipe = short("adm", 5)
    last = train(recipe, tmp_path, CPU, True, images, keep_every=2)
    kept = [tmp_path / f"adm-{seen}.safetensors" for seen in (8, 16)]
    assert sorted(tmp_path.glob("*.safetensors")) == sorted([last, *kept])
    assert [read_description(path).training_images() for path in (*kept, last)] == [
        {"recipe": "adm", "images": seen} for seen in (8, 16, 20)
    ]
    shorter = train(short("adm", 2), tmp_path / "shorter", CPU, True, images)
    # The rate decays over the whole length, so that the weights are those of a part of it and not of a short one.
    assert not same(load_file(shorter), load_file(kept[0]))


def test_cifar10_without_its_files_is_one_line(tmp_path, capsys):
    found = outcome_of(capsys, main, "--recipe", "cifar10/adm", "--out", tmp_path / "out", "--quiet")
    assert found.refused("dataset 'cifar10' needs --data-dir DIR")


def test_bf16_rounds_the_call_and_nothing_else(images):
    """Eight bits of mantissa: outputs, of order 1 after a few steps, differ by some 2^-8 and not at all in dtype."""
    full, half = (Trainer(short("adm", precision=name), NETWORK, CPU) for name in ("fp32", "bf16"))
    for trainer in (full, half):
        for k in range(3):
            trainer.step(images[:4], torch.arange(4) + 4 * k)
    t = torch.arange(4) * 200
    ours, theirs = (trainer.predict(images[:4], t) for trainer in (full, half))
    assert theirs.dtype == torch.float32
    assert 0 < (ours - theirs).abs().max() < 0.1
    assert {weights.dtype for weights in half.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["adm", "adm-gp", "adm-mdss", "adm-dream", "edm"])
def test_only_the_call_that_learns_is_compiled(images, monkeypatch, name):
    """The gradient penalty has a second derivative, which compiled code has not; the other calls learn nothing."""
    seen = []

    def compiled(network, **how):
        def call(x, t, labels):
            seen.append((len(x), torch.is_grad_enabled()))
            return network(x, t, labels)

        return call

    recipe, network = short(name), EDM_NETWORK if name == "edm" else NETWORK
    eager, trainer = Trainer(recipe, network, CPU), Trainer(recipe, network, CPU)
    monkeypatch.setattr(torch, "compile", compiled)
    trainer.compile(images)
    for one in (eager, trainer):
        one.iteration = 2  # where scheduled sampling replaces a share
        one.step(images[:4], torch.arange(4))
    assert seen == [(4, True)] * 2  # the first to compile
    assert same(eager.network.state_dict(), trainer.network.state_dict())


@pytest.mark.parametrize("name", ["adm-ip", "adm-gp", "edm"])
def test_recipes_of_cifar10_take_a_step_on_colour_images(name):
    """In bf16, with attention at two sizes; the gradient penalty needs second derivatives of all of it."""
    recipe = dataclasses.replace(RECIPES[f"cifar10/{name}"], batch=2)
    network = dict(NETWORKS["cifar10"]) | ({"out_channels": 3} if name == "edm" else {})
    trainer = Trainer(recipe, network, CPU)
    before = {key: tensor.clone() for key, tensor in trainer.network.state_dict().items()}
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = trainer.step(images, torch.arange(2))
    assert all(torch.isfinite(loss) for loss in (losses.mse, losses.bound, losses.penalty))
    assert (losses.penalty > 0) == (name == "adm-gp")
    assert not same(before, trainer.network.state_dict())


def test_a_training_does_not_go_on_with_other_images(tmp_path, images, monkeypatch):
    data = load("digits")
    monkeypatch.setattr(training, "load", lambda name, data_dir: data)
    train(short("adm", 2), tmp_path, CPU, True)
    other = dataclasses.replace(data, images=255 - data.images)
    monkeypatch.setattr(training, "load", lambda name, data_dir: other)
    with pytest.raises(CheckpointError, match="was written with other images; check --data-dir"):
        train(short("adm", 2), tmp_path, CPU, True)


def test_the_flags_reach_the_training(tmp_path, monkeypatch, capsys):
    seen = []

    def record(recipe, out, *args, **more):
        seen.append((recipe, out, more))
        return out

    monkeypatch.setattr("bench.models.train.__main__.train", record)
    plain = ["--recipe", "cifar10/adm-ip", "--quiet"]
    flags = ["--data-dir", str(tmp_path), "--compile", "on", "--keep-every", "800", "--out", str(tmp_path / "out")]
    assert main(plain) == main([*plain, *flags]) == 0
    (recipe, out, more), (_, own, told) = seen
    assert (recipe, str(out)) == (RECIPES["cifar10/adm-ip"], "training/cifar10/adm-ip")
    assert (more["data_dir"], more["compiled"], more["keep_every"]) == (None, False, 0)
    assert (told["data_dir"], told["compiled"], told["keep_every"], own) == (tmp_path, True, 800, tmp_path / "out")


def test_a_compiler_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    def broken(network, **how):
        def call(x, t, labels):
            raise RuntimeError("no C++ compiler\nand many lines more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    assert main(["--recipe", "adm", "--compile", "on", "--quiet", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: no C++ compiler; use --compile off\n"


def test_a_training_whose_loss_is_no_number_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda network, **how: network)
    common = ["--recipe", "adm-ip", "--gamma", "1e39", "--iterations", "1", "--quiet", "--out", str(tmp_path)]
    for flags, hint in (([], ""), (["--compile", "on"], "; use --compile off")):
        assert main([*common, *flags]) == 2
        line = "the loss (mse, bound) is no finite number at iteration 1 or just before; nothing from there on is saved"
        assert capsys.readouterr().err == f"error: {line}{hint}\n"
        assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_on_the_way_is_kept_though_its_iteration_was_the_last(tmp_path, images, monkeypatch):
    """The plug is pulled between keeping and saving: the training goes on before both, and keeps it again."""
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr(training, "_SAVE_EVERY", 2)
    recipe, saved = short("adm", 4), Trainer.save

    def save(self, path):
        if self.iteration == 4:
            raise Killed
        saved(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save)
        with pytest.raises(Killed):
            train(recipe, tmp_path, CPU, True, images, keep_every=4)
    kept = tmp_path / "adm-16.safetensors"
    first = kept.read_bytes()
    kept.unlink()
    train(recipe, tmp_path, CPU, True, images, keep_every=4)
    assert kept.read_bytes() == first


@pytest.mark.slow
def test_compiled_gradients_are_the_eager_ones(images):
    """Adam's first moments are a tenth of the gradients. Compiled code sums float32 numbers in another order: 1e-5."""
    eager, compiled = (Trainer(short("adm", warmup=1), NETWORK, CPU) for _ in range(2))
    compiled.compile(images)
    losses = [one.step(images[:4], torch.arange(4)) for one in (eager, compiled)]
    assert losses[1].mse.item() == pytest.approx(losses[0].mse.item(), rel=1e-5)
    gradients = [
        torch.cat([state["exp_avg"].flatten() for state in one.optimizer.state.values()]) for one in (eager, compiled)
    ]
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()
