"""EDM's two networks once more, as plain functions of a dictionary of tensors: slow, and another route to each result.

Written from the published description (Karras et al. 2022, appendix F), without the classes under test.
"""

import math

import torch


class Reading(dict):
    """Tensors of a file, of which those that were read are remembered."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


def conv(w, name, x):
    """Convolve by gathering every pixel's neighbourhood."""
    weight = w[f"{name}.weight"]
    kernel = weight.shape[-1]
    columns = torch.nn.functional.unfold(x, kernel, padding=kernel // 2)
    out = weight.flatten(1) @ columns
    return out.reshape(len(x), len(weight), *x.shape[2:]) + w[f"{name}.bias"][:, None, None]


def linear(w, name, x):
    out = torch.einsum("oi,bi->bo", w[f"{name}.weight"], x)
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def norm(w, name, x, eps):
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch, min(32, channels // 4), -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    flat = (centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()).reshape(x.shape)
    return flat * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def silu(x):
    return x / (1 + torch.exp(-x))


def filtered(w, names, taps):
    """Assert that a file stores the fixed filter, sum 1, under each of these names."""
    one = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    assert all(torch.allclose(w[f"{name}.resample_filter"][0, 0], torch.outer(one, one)) for name in names)


def down(x, taps):
    """Filter and halve along one axis, then along the other."""
    pad = (len(taps) - 1) // 2
    for _ in range(2):
        padded = torch.nn.functional.pad(x, (pad, pad))
        out = x.shape[-1] // 2
        x = sum(tap / sum(taps) * padded[..., k : k + 2 * out - 1 : 2] for k, tap in enumerate(taps)).transpose(2, 3)
    return x


def up(x, taps):
    """Put zeros between the pixels and filter, along one axis, then along the other."""
    pad, length = (len(taps) - 1) // 2, len(taps)
    for _ in range(2):
        sparse = torch.stack([x, torch.zeros_like(x)], -1).flatten(3)
        padded = torch.nn.functional.pad(sparse, (length - 1 - pad, pad))
        out = sparse.shape[-1]
        x = sum(2 * tap / sum(taps) * padded[..., k : k + out] for k, tap in enumerate(reversed(taps))).transpose(2, 3)
    return x


def attention(w, name, x, heads, eps):
    batch, channels, height, width = x.shape
    qkv = conv(w, f"{name}.qkv", norm(w, f"{name}.norm2", x, eps)).reshape(batch, channels, 3, height * width)
    mixed = []
    for q, k, v in (part.unbind(2) for part in qkv.chunk(heads, dim=1)):
        scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(q.shape[1])
        mixed.append(torch.einsum("bqk,bck->bcq", scores.softmax(2), v))
    return conv(w, f"{name}.proj", torch.cat(mixed, 1).reshape(x.shape))


def block(w, name, x, emb, *, resample=None, song, taps):
    """One residual block of either network; a file's names tell what it has."""
    eps, scale = (1e-6, math.sqrt(0.5)) if song else (1e-5, 1.0)
    change = {None: lambda y, taps: y, "down": down, "up": up}[resample]
    if resample:
        filtered(w, [f"{name}.conv0", f"{name}.skip"], taps)
    hidden = conv(w, f"{name}.conv0", change(silu(norm(w, f"{name}.norm0", x, eps)), taps))
    affine = linear(w, f"{name}.affine", emb)[:, :, None, None]
    if song:
        hidden = silu(norm(w, f"{name}.norm1", hidden + affine, eps))
    else:
        factor, shift = affine.chunk(2, 1)
        hidden = silu(norm(w, f"{name}.norm1", hidden, eps) * (1 + factor) + shift)
    x = change(x, taps)
    x = scale * (conv(w, f"{name}.conv1", hidden) + (conv(w, f"{name}.skip", x) if f"{name}.skip.weight" in w else x))
    if f"{name}.qkv.weight" in w:
        x = scale * (x + attention(w, name, x, 1 if song else x.shape[1] // 64, eps))
    return x


def waves(noise, frequencies, cosine_first):
    angles = noise[:, None] * frequencies[None]
    parts = (angles.cos(), angles.sin()) if cosine_first else (angles.sin(), angles.cos())
    return torch.cat(parts, 1)


def network(architecture, w, config, x, noise, label):
    """Run either network: tensors ``w`` by their names in a file, label [B, classes] or None."""
    song, w = architecture == "SongUNet", Reading(w)
    emb = (song_embedding if song else dhariwal_embedding)(w, config, noise, label)
    taps = config.get("resample_filter", [1, 1])
    kind, drawn = config.get("encoder_type", "standard"), config.get("decoder_type", "standard")
    sizes = [config["img_resolution"] // 2**level for level in range(len(config["channel_mult"]))]
    kept, carried = [], x
    for size in sizes:
        at = f"enc.{size}x{size}"
        if size == sizes[0]:
            x = conv(w, f"{at}_conv", x)
        else:
            x = block(w, f"{at}_down", x, emb, resample="down", song=song, taps=taps)
            if kind == "skip":
                filtered(w, [f"{at}_aux_down"], taps)
                carried = down(carried, taps)
                x = x + conv(w, f"{at}_aux_skip", carried)
            if kind == "residual":
                filtered(w, [f"{at}_aux_residual"], taps)
                carried = x = (x + wide_then_down(w, f"{at}_aux_residual", carried, taps)) / math.sqrt(2)
        kept.append(x)
        for i in range(config["num_blocks"]):
            x = block(w, f"{at}_block{i}", x, emb, song=song, taps=taps)
            kept.append(x)
    image = 0
    for size in reversed(sizes):
        at = f"dec.{size}x{size}"
        if size == sizes[-1]:
            x = block(w, f"{at}_in0", x, emb, song=song, taps=taps)
            x = block(w, f"{at}_in1", x, emb, song=song, taps=taps)
        else:
            x = block(w, f"{at}_up", x, emb, resample="up", song=song, taps=taps)
        for i in range(config["num_blocks"] + 1):
            x = block(w, f"{at}_block{i}", torch.cat([x, kept.pop()], 1), emb, song=song, taps=taps)
        if drawn == "skip" and size != sizes[-1]:
            filtered(w, [f"{at}_aux_up"], taps)
            image = up(image, taps)
        if song and (drawn == "skip" or size == sizes[0]):
            image = image + conv(w, f"{at}_aux_conv", silu(norm(w, f"{at}_aux_norm", x, 1e-6)))
    out = image if song else conv(w, "out_conv", silu(norm(w, "out_norm", x, 1e-5)))
    unread = {name for name in set(w) - w.read if not name.startswith("map_augment")}  # labels of training alone
    assert all(name.startswith("map_label") for name in unread) if label is None else not unread
    return out


def wide_then_down(w, name, x, taps):
    """Convolve at the finer size, filter and halve; zeros lie around the image only, not around what was convolved."""
    pad = (len(taps) - 1) // 2
    wide = conv(w, name, torch.nn.functional.pad(x, [pad] * 4))
    for _ in range(2):
        out = (wide.shape[-1] - len(taps)) // 2 + 1
        filtered = sum(tap / sum(taps) * wide[..., k : k + 2 * out - 1 : 2] for k, tap in enumerate(taps))
        wide = filtered.transpose(2, 3)
    return wide


def song_embedding(w, config, noise, label):
    width = config["model_channels"] * config.get("channel_mult_noise", 1)
    if config.get("embedding_type") == "fourier":
        frequencies = 2 * math.pi * w["map_noise.freqs"]
    else:
        frequencies = torch.tensor([10000 ** (-i / (width // 2 - 1)) for i in range(width // 2)])
    emb = waves(noise, frequencies, cosine_first=False)
    if label is not None:
        emb = emb + linear(w, "map_label", label * math.sqrt(label.shape[1]))
    return silu(linear(w, "map_layer1", silu(linear(w, "map_layer0", emb))))


def dhariwal_embedding(w, config, noise, label):
    half = config["model_channels"] // 2
    frequencies = torch.tensor([10000 ** (-i / half) for i in range(half)])
    emb = linear(w, "map_layer1", silu(linear(w, "map_layer0", waves(noise, frequencies, cosine_first=True))))
    return silu(emb if label is None else emb + linear(w, "map_label", label))
