.PHONY: test test-ci test-slow lint type bench figures

test:
	python -m pytest

test-ci:
	python -m pytest -m "ci and not slow"

test-slow:
	python -m pytest -m slow

lint:
	ruff check .
	ruff format --check .

type:
	mypy

bench:
	python -m benchmarks

# Regenerate tables and figures of every results folder from its records.
figures:
	for run in results/*/cells; do python -m analysis "$$(dirname "$$run")"; done
