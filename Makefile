# `make demo` and `make test` do everything on a machine that has Python 3.11 or newer.
# GNU make 3.81 or newer, as macOS has it; on Windows in Git Bash.
PYTHON ?= python3
VENV := .venv
BINARIES := bin
ifeq ($(OS),Windows_NT)
SHELL := bash
BINARIES := Scripts
EXE := .exe
# The tests read pages in UTF-8.
export PYTHONUTF8 := 1
endif
BIN := $(VENV)/$(BINARIES)
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: demo test tests integration_tests unit_and_folders integration_else unit integration \
	test-thorough test-oldest test-ray lint typing docs docs-serve browser redis \
	gpu gpu-quick gpu-peers bench dist format clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# The tests beside each other in two halves that take about as long, each with its output in one piece.
test: lint typing
	$(MAKE) -j2 $(SYNC) unit_and_folders integration_else

# The integration tests that are in folders run behind the unit tests: the halves are as long by that.
FOLDERS := $(addprefix tests/integration_tests/, runtime serve store)

unit_and_folders: unit redis
	$(BIN)/python -m pytest $(FOLDERS) -q --durations=25

integration_else: $(VENV)/.dev browser redis
	$(BIN)/python -m pytest tests/integration_tests $(addprefix --ignore=,$(FOLDERS)) -q --durations=25

# The names that LangChain's own packages have for them.
tests: unit
integration_tests: integration

# What takes minutes and no card: a card's kernels compiled for all cards, and on cases drawn at random.
test-thorough: $(VENV)/.dev
	$(BIN)/python -m pytest tests -q -m thorough

# The faces to LangChain on the oldest langchain-core and langchain that pyproject.toml allows: all else is
# that of $(VENV), which this one stands upon, so that PyTorch is not installed twice.
OLDEST := .venv-oldest
OLDEST_CORE := 1.7.2
OLDEST_LANGCHAIN := 1.4.0
FACES := $(wildcard $(addprefix tests/unit_tests/, test_chat_models*.py test_llms*.py test_standard.py \
	test_imports.py conversation/test_*.py $(addprefix prompt/test_, markers.py plan.py \
	tool_calling.py structured.py thinking.py))) tests/integration_tests/test_standard.py

test-oldest: $(OLDEST)/.dev
	$(OLDEST)/$(BINARIES)/python -m pytest $(FACES) -q

# Three replicas over one store: Ray takes 320 MB, so it has a place of its own, on top of $(VENV).
RAY := .venv-ray

test-ray: $(RAY)/.dev
	$(RAY)/$(BINARIES)/python -m pytest tests/unit_tests/ray tests/integration_tests/test_ray.py -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config \
		.github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms \
		$(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec examples/deploy/compose.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

typing: $(VENV)/.dev
	$(BIN)/mypy

# The documentation as a site, in site/: open site/index.html, no server and no network is needed.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-serve: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

unit: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit_tests --disable-socket --allow-unix-socket -q --durations=25
	$(BIN)/python -m pytest --doctest-modules langchain_rwkv_state --disable-socket --allow-unix-socket -q

integration: $(VENV)/.dev browser redis
	$(BIN)/python -m pytest tests/integration_tests -q --durations=25

# The report page is tested in a browser; without one that test is skipped, and says what to install.
browser:
	@for each in "$$CHROMIUM" chromium chromium-browser google-chrome; do \
		if [ -n "$$each" ] && "$$each" --version >/dev/null 2>&1; then exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing chromium for the test of the report page"; \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
			--no-install-recommends chromium fonts-dejavu-core) >/dev/null 2>&1 && exit 0; fi; \
	echo "No chromium here: the test of the report page will be skipped"

# Sessions in Redis are tested with a private server; without one those tests are skipped, and say what
# to install. Debian's package would start a server for the whole machine, which policy-rc.d prevents.
# On GitHub's machines ($CI), which nobody minds, sudo does it.
INSTALL_REDIS := \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then \
		trap "rm -f $$policy" EXIT; \
		printf "\#!/bin/sh\nexit 101\n" >$$policy; chmod +x $$policy; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends redis-server

redis:
	@if command -v redis-server >/dev/null; then exit 0; fi; \
	as=false; if [ "$$(id -u)" = 0 ]; then as=; elif [ -n "$$CI" ]; then as="sudo -n"; fi; \
	if [ "$$as" != false ] && command -v apt-get >/dev/null; then \
		echo "Installing redis-server for the tests of sessions in Redis"; \
		$$as sh -c '$(INSTALL_REDIS)' >/dev/null 2>&1 && exit 0; fi; \
	echo "No redis-server here: the tests of sessions in Redis will be skipped"

# On a machine with a CUDA card; ALBATROSS=PATH names a checkout to compare with. gpu-peers builds what
# there is to compare with, once, before the others.
gpu gpu-quick gpu-peers: $(VENV)/.dev
	$(BIN)/python -m benchmarks.cuda $(if $(filter gpu-quick,$@),--quick) \
		$(if $(filter gpu-peers,$@),--build-peers) $(if $(ALBATROSS),--albatross "$(ALBATROSS)")

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run_all

# Wheel and sdist, in dist/, by what is installed: no network is needed.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) $(RAY) dist site .mypy_cache .ruff_cache .pytest_cache

$(OLDEST)/.dev: Makefile $(VENV)/.dev
	rm -rf $(OLDEST)
	$(BIN)/python -m venv $(OLDEST)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(OLDEST)/$(BINARIES)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth
	$(OLDEST)/$(BINARIES)/python -m pip install --quiet --ignore-installed --no-deps \
		langchain-core==$(OLDEST_CORE) langchain==$(OLDEST_LANGCHAIN)
	touch $@

$(RAY)/.dev: pyproject.toml constraints.txt $(VENV)/.dev
	rm -rf $(RAY)
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(RAY)/$(BINARIES)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth
	$(RAY)/$(BINARIES)/python -m pip install --quiet -c constraints.txt "ray[serve]>=2.60"
	touch $@

$(BIN)/python$(EXE):
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed, found ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python$(EXE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python$(EXE)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . \
		--group test --group lint --group typing --group bench --group docs --group dist
	touch $@ $(VENV)/.demo
