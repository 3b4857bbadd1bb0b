# Common tasks. Each calls a script that also works without make.
.DEFAULT_GOAL := help
.PHONY: help install serve lint format types docs unit integration e2e test bench screenshots

help: ## list these commands
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

install: ## install everything into .venv, development tools included
	scripts/install

serve: ## start the appliance with models.yaml
	scripts/serve

lint: ## check style and format
	scripts/lint

format: ## fix style and format where that can be done automatically
	scripts/lint --fix

types: ## check types, and which package imports which
	scripts/check

docs: ## build the manual and check its links
	scripts/docs

unit: ## run the tests that need neither Ray nor a network
	scripts/test -n 2 --dist loadfile tests/unit

integration: ## run the tests with real processes, Ray and weights
	scripts/test -n 2 --dist loadfile tests/integration

e2e: ## run the tests that drive the real command with real clients and a browser
	scripts/install-clients
	scripts/install-browser
	scripts/test tests/e2e

test: ## run everything that CI runs
	scripts/test

bench: ## compare with other servers; prints ratios
	scripts/bench

screenshots: ## save a screenshot of every page of the UI in .screenshots/
	scripts/screenshots
