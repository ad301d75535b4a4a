"""The published multi-step delta_t on CIFAR-10 beside what it is for a perfect sampler: nearly all data variance.

The authors' own log for ADM at 20 steps gives delta_t = (pred_std - sigma_t)^2, with pred_std the mean over pixels of
the std of x_t - alpha_t x_0 (forever208/ADM-ES, issue 4). The chain starts from noise and forgets x_0, so that for a
perfect sampler pred_std is the floor, mean over pixels of sqrt(sigma_t^2 + 2 alpha_t^2 sigma_p^2). No record is needed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.output.style import colours, panels, save
from analysis.published.tables import load_published

MEAN_PIXEL_STD = 0.4942  # of CIFAR-10 in [-1, 1], to four digits


def cosine_alpha_bar(t: NDArray[np.int64], length: int = 1000) -> NDArray[np.float64]:
    """Return alpha_bar of the cosine schedule at training indices t from 0 (Nichol & Dhariwal 2021, eq. 17).

    The last index, where the published code caps beta, is not served.
    """

    def f(u: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    result: NDArray[np.float64] = f((t + 1) / length) / f(np.zeros(1))
    return result


def floor_of_mean(alpha_bar: NDArray[np.float64], std: float = MEAN_PIXEL_STD) -> NDArray[np.float64]:
    """Return the floor as if every pixel had the mean std: slightly below it, since the root is convex in sigma_p."""
    result: NDArray[np.float64] = np.sqrt(1 - alpha_bar + 2 * alpha_bar * std**2)
    return result


def delta_table() -> pd.DataFrame:
    """Return published and floor delta_t by timestep, their stds, and the signed excess; noisiest level first.

    ``timestep`` counts respaced steps from 1, as published; ``t`` is the original training index from 0.
    """
    floor = load_published("delta_t_floor_cifar10_20step").drop(columns=["source", "alpha_bar"])
    published = load_published("delta_t_cifar10_20step")[["timestep", "value", "source"]]
    table = floor.merge(published, on="timestep", how="left").rename(columns={"orig_t": "t"})
    alpha_bar = cosine_alpha_bar(table["t"].to_numpy())
    sigma = np.sqrt(1 - alpha_bar)
    floor_std = table["floor_pred_std"]
    return pd.DataFrame(
        {
            "timestep": table["timestep"],
            "t": table["t"],
            "sigma": sigma,
            "delta_t": table["value"],
            "delta_t_floor": (floor_std - sigma) ** 2,
            "floor_std": floor_std,
            "floor_std_of_mean": floor_of_mean(alpha_bar),
            "excess_std": sigma + np.sqrt(table["value"]) - floor_std,
            "source": table["source"],
        }
    )


def draw_published_delta(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Left: published delta_t over its floor, logarithmic. Right: published pred_std minus the floor, signed."""
    blue, red = list(colours(["published", "excess"]).values())
    with panels(1, 2) as (figure, axes):
        left, right = axes[0]
        left.plot(table["t"], table["delta_t"], color=blue, marker="o", markersize=3, label="published (ADM)")
        left.plot(table["t"], table["delta_t_floor"], color="black", linestyle="--", label="perfect sampler (floor)")
        left.set_yscale("log")
        left.set_ylabel(r"$\delta_t$")
        left.legend(frameon=False)
        right.plot(table["t"], table["excess_std"], color=red, marker="o", markersize=3)
        right.axhline(0, color="black", linewidth=0.8)
        right.set_ylabel("published pred_std - floor")
        for axis in (left, right):
            axis.set_xlabel("t (levels of 20 steps)")
            axis.set_xlim(table["t"].max() + 20, table["t"].min() - 20)
        return save(figure, folder, "published_delta_t")


def caption(table: pd.DataFrame) -> str:
    """Return what the figure shows, and which share of the published curve is its floor."""
    large = table[table["delta_t"] > 0.001]
    share = large["delta_t_floor"] / large["delta_t"]
    excess = table["excess_std"].dropna()
    return (
        "Published, CIFAR-10, ADM, 20 steps (forever208/ADM-ES issue 4; N not stated there, one run; cut after"
        " timestep 5). Left: delta_t = (pred_std - sigma_t)^2 and, dashed, its floor for a perfect sampler, (mean"
        " over pixels of sqrt(sigma_t^2 + 2 alpha_t^2 sigma_p^2) - sigma_t)^2 with sigma_p the data's std per pixel:"
        f" where delta_t exceeds .001 the floor is {100 * share.min():.0f} to {100 * share.max():.0f} % of it, so the"
        " curve shows data variance. Right: pred_std minus the floor, signed: above 0 the samples are over-, below 0"
        f" under-dispersed, by {excess.min():+.4f} to {excess.max():+.4f} of at most 1."
    )
