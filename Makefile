# `make chat` and `make test` need nothing but python3, python3-venv and make: they set up .venv
# themselves, and do nothing about it the next time. Settings: see tools/install.sh.

MODEL = demo
ARGS =
TRITON =
VENV = .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help chat test test-slow test-gpu aot aot-table dev lint format docs clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo '  Settings: PYTHON=python3.12  TORCH_INDEX=URL  MODEL=demo  ARGS="more options"'

chat: ## install what is missing, then chat with the embedded demo model
	@sh tools/install.sh run
	@$(VENV)/xverse chat --model "$(MODEL)" $(ARGS)

test: ## install what is missing, then run the tests (minutes)
	@sh tools/install.sh test
	@$(VENV)/python -m pytest -m 'not slow and not gpu' $(ARGS)

test-slow: ## the tests that take longer (up to 50 minutes)
	@sh tools/install.sh test
	@sh tools/test_tier.sh slow $(ARGS)

test-gpu: ## the tests that need a GPU
	@sh tools/install.sh test
	@sh tools/test_tier.sh gpu $(ARGS)

aot: ## compile all kernels for all GPUs, with another triton: TRITON=3.6.0
	@sh tools/install.sh test
	@sh tools/aot.sh "$(TRITON)" $(ARGS)

aot-table: ## the same with the installed triton, renewing the table in docs/kernels.md
	@sh tools/install.sh test
	@$(VENV)/python -m tools.aot --table docs/kernels.md

dev: ## set up .venv for working on the code
	@sh tools/install.sh test
	@echo 'Ready: . .venv/bin/activate'

lint: ## style, types, and who may import whom
	@sh tools/install.sh test
	$(VENV)/python -m ruff check .
	$(VENV)/python -m ruff format --check .
	$(VENV)/python -m mypy
	$(VENV)/lint-imports --no-cache

format: ## rewrite the code in the one format
	@sh tools/install.sh test
	$(VENV)/python -m ruff check --fix .
	$(VENV)/python -m ruff format .

docs: ## renew the outputs in README.md and the tables in docs/
	@sh tools/install.sh test
	@$(VENV)/python tools/readme_examples.py
	@$(VENV)/python -m xverse_cli.reference docs/cli.md docs/chat.md

clean: ## remove caches and build products
	rm -f kernels/xverse_kernels/cpu/_native* .venv/.xverse-installed-*
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## the same, and .venv
	rm -rf .venv
