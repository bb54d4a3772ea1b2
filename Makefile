# What there is to do here: `make help`. Every target can be called at any time; what is there already is not
# done again. Nothing asks a question.

SETUP := deploy/local/setup.sh
WITH_SERVICES := deploy/local/with-services.sh
BIN := .venv/bin
# make images FLAVOUR=alpine|debian
FLAVOUR ?=
# make test ARGS="-k name"
ARGS ?=
# make test-hosts ROW="forky trixie"
ROW ?=
# make test-upgrade BASE=COMMIT
BASE ?=
export ARGS BASE

CHECKS := check-format check-lint check-types check-layers check-shell check-dockerfiles

.DEFAULT_GOAL := help
.PHONY: help demo test test-hosts test-vm test-upgrade flaky attack chaos fuzz up check $(CHECKS) bench images docs lock clean

help: ## this list
	@echo 'cronium-worker: scripts as jobs, each alone in a container, on a fleet of Docker hosts'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: ## everything on this machine, three real jobs with live logs and results, and all down again
	@$(SETUP) venv services
	@$(WITH_SERVICES) deploy/local/demo.sh

test: ## the whole test suite on real Docker Engines and Redis, side by side; ARGS="-k name" for a part, on this engine
	@$(SETUP) venv services tests
	@$(WITH_SERVICES) sh -c 'cronium images build && exec $(if $(ARGS),pytest $$ARGS,python -m tests.labs)'

test-upgrade: ## hosts of an older version beside today's, and back; BASE=COMMIT,COMMIT; ARGS=--short without what takes long
	@$(SETUP) venv services tests
	@$(WITH_SERVICES) sh -c 'cronium images build && exec pytest tests/upgrade $$ARGS'

test-hosts: ## the tests about the engine on other Debian suites, engines, runtimes; ROW="forky forky-crun"; ARGS="-k name"
	@$(SETUP) venv services tests
	@$(WITH_SERVICES) sh -c 'cronium images build && exec python -m tests.matrix $(addprefix --row ,$(ROW)) $$ARGS'

test-vm: ## a virtual machine with nothing but Debian: installation to removal, power cuts between; ARGS="-k drain"
	@$(SETUP) venv services tests vm
	@$(WITH_SERVICES) sh -c 'cronium images build && exec pytest -x tests/machine $$ARGS'

flaky: ## the tests again and again beside a load, for those that fail by chance; ARGS="--minutes 30 tests/system"
	@$(SETUP) venv services tests
	@$(WITH_SERVICES) sh -c 'cronium images build && exec python -m tests.flaky $$ARGS'

attack: ## what an attacker tries, against the real thing; ARGS=queue for those with that in their name
	@$(SETUP) venv services tests
	@$(WITH_SERVICES) sh -c 'cronium images build && exec pytest -m attack $${ARGS:+-k "$$ARGS"}'

chaos: ## faults into a fleet under load: nothing lost, nothing twice; ARGS="--faults 50 --seed 2 --kinds redis", --help
	@$(SETUP) venv services tests
	@$(WITH_SERVICES) sh -c 'cronium images build && exec python -m tests.chaos $$ARGS'

fuzz: ## any message, output file and log for ten minutes: nothing crashes; ARGS="--minutes 1 --only tree"
	@$(SETUP) venv services tests
	@$(BIN)/python -m tests.fuzz $$ARGS

up: ## the fleet in the foreground: worker, agent, beat, Flower, page; Ctrl-C ends it, records stay in var/
	@$(SETUP) venv services
	@CRONIUM_WEB__URL=http://127.0.0.1:$${CRONIUM_WEB__PORT:-8700} \
		CRONIUM_FLOWER__URL=http://127.0.0.1:$${CRONIUM_FLOWER__PORT:-5555} $(WITH_SERVICES) --state var sh -c 'cronium images build \
		&& exec python -m cronium_worker.cli.supervise Procfile'

check: ## formatter, linters, types, layers: what CI runs before the tests
	@$(SETUP) venv check
	@$(MAKE) --no-print-directory $(CHECKS)

check-format:
	$(BIN)/ruff format --check .

check-lint:
	$(BIN)/ruff check .

check-types:
	$(BIN)/mypy

check-layers:
	$(BIN)/lint-imports --no-logo

check-shell:
	find . \( -path ./.venv -o -path ./var -o -path ./.git \) -prune -o \
		-type f \( -name '*.sh' -o -name '*.bash' -o -path ./.ci/run \) -print0 | xargs -0 shellcheck

check-dockerfiles:
	find images deploy -name '*.Dockerfile' -print0 | xargs -0 $(BIN)/hadolint --config images/.hadolint.yaml

bench: ## the benchmarks as a table, and in benchmarks/results/latest.json
	@$(SETUP) venv services tests
	@$(WITH_SERVICES) sh -c 'cronium images build && exec python -m benchmarks $$ARGS'

images: ## base and runner images; FLAVOUR=alpine or FLAVOUR=debian
	@$(SETUP) venv services
	@$(WITH_SERVICES) cronium images build $(if $(FLAVOUR),--flavour $(FLAVOUR))

docs: ## the documentation as a site, in var/site
	@$(SETUP) venv
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo var/site/index.html

lock: ## requirements*.txt anew from pyproject.toml; UPGRADE=1 takes newer versions
	@deploy/local/lock.sh $(if $(UPGRADE),--upgrade)

clean: ## away with .venv and the tools' caches; images and var/ stay
	rm -rf .venv build dist .coverage htmlcov .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
