# Everything is a script in scripts/, so that CI, people and this file run the same commands.
.PHONY: help demo test lint format docs clean

help:
	@echo "make demo    install into .venv and watch the agent repair a small project (no torch)"
	@echo "make test    install the test tools and CPU torch, then lint, type-check and test"
	@echo "make lint    ruff and mypy only"
	@echo "make format  let ruff format the code"
	@echo "make docs    write the generated pages of docs/reference"
	@echo "make clean   remove .venv and build"

demo:
	@scripts/setup core
	@.venv/bin/sterna demo

test:
	@scripts/setup test
	@scripts/lint
	@scripts/test

lint:
	@scripts/setup test
	@scripts/lint

format:
	@scripts/setup test
	@.venv/bin/ruff check --fix src tests scripts
	@.venv/bin/ruff format src tests scripts

docs:
	@scripts/setup core
	@.venv/bin/python scripts/docs

clean:
	rm -rf .venv build
