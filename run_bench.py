"""Measure exposure bias and sample quality: ``python run_bench.py --models adm,adm-ip --steps 80,100,300,1000``."""

from __future__ import annotations

from bench.__main__ import console, main

__all__ = ["main"]

if __name__ == "__main__":
    console()
