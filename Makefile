# `make` lists the targets. Needs GNU make and sh; whatever it makes goes to .venv/ and dist/.

PYTHONS  := $(shell tests/pythons)
VERSIONS := $(foreach pair,$(PYTHONS),$(firstword $(subst =, ,$(pair))))
OLDEST   := $(firstword $(VERSIONS))
NEWEST   := $(lastword $(VERSIONS))
# looked for when used: `packages` may just have installed it
CLIENTS   = $(shell which -a docker | xargs -r readlink -f | awk '!seen[$$0]++')

python = $(patsubst $(1)=%,%,$(filter $(1)=%,$(PYTHONS)))
pip    = .venv/$(1)/bin/python -m pip install -qq --disable-pip-version-check
pytest = .venv/$(1)/bin/python -B -m pytest -q -rs --durations=8 -p no:cacheprovider

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# ---------------------------------------------------------------- tests
# A ring is one suite under one Python, a target of its own; make runs them side by side and goes on after a failure.
# tests/README.md tells which ring a change needs. DOCKFIX_TEST=all: no matrix is thinned.

UNIT   := $(addprefix unit-,$(VERSIONS))
PARTS  := 0 1
QUARTERS := 0 1 2 3
FAST   := $(addprefix fast-,$(QUARTERS))
USUAL  := $(addprefix usual-,$(PARTS))
# one run under the oldest Python with the last docker client, one under the newest with the first; each in two halves,
# with an engine of their own
ENGINE  = $(filter-out $(PASSED),$(foreach run,oldest newest,$(addprefix engine-$(run)-,$(PARTS))))

test: RINGS = $(sort unit-$(OLDEST) unit-$(NEWEST)) $(USUAL)
test test-fast test-all test-engine: JOBS = $$(($$(nproc) + 3))    # they wait a lot
test: ## what a newcomer runs first: tests/unit under the oldest and the newest Python, tests/engine once, long matrices thinned (root; installs what is missing)
test-fast: RINGS = $(FAST)
test-fast: ## everyday work, under a minute: tests/unit under the newest Python, without the kill matrices
test-all: RINGS = $(UNIT) $(ENGINE) engine-current
test-all: ## rings one and two whole: every Python 3.6+ found (between oldest and newest a third of the tests each), both docker clients, current engines
test-unit: RINGS = $(UNIT)
test-unit: ## ring one whole, under every Python found
test-engine: RINGS = $(ENGINE) engine-current
test-engine: ## ring two whole, on private engines
test-vm: RINGS = $(VM)
test-vm: ## ring three, in a virtual machine with a real devicemapper pool (root, x86_64; installs qemu and mmdebstrap when missing; FULL=1: all of it)
test test-all test-engine: packages
test-vm: vm-packages
test-all test-unit: export DOCKFIX_TEST = all
# in the engine's ring the long matrices are thinned in test-all too: FULL=1 runs them whole
ENGINE_TEST = DOCKFIX_TEST=$(if $(FULL),all)

test test-fast test-all test-unit test-engine test-vm:
	@$(if $(VERSIONS),,echo 'no Python 3.6 or newer found (Debian: apt-get install python3-venv)' >&2; exit 1)
	@rm -rf .venv/results && mkdir -p .venv/results
	@for ring in $(RINGS); do echo "NOT RUN: $$ring (reason above)" >.venv/results/$$ring; done
	@$(MAKE) --no-print-directory -k -O $(if $(findstring -j,$(MAKEFLAGS)),,-j$(or $(JOBS),$$(nproc))) $(RINGS) || :
	@echo; cat $(addprefix .venv/results/,$(RINGS))
	@! grep -q '^FAILED' .venv/results/* && grep -q '^passed' .venv/results/* && \
		{ [ "$$CI" != true ] || ! grep -q '^NOT RUN' .venv/results/*; }

# $(1): Python's version; $(2): what else there is to say; $(3): environment; $(4): tests
ring = @$(3) $(call pytest,$(1)) $(4) >.venv/results/$@.log 2>&1 && word=passed || word=FAILED; \
	echo "== $@"; cat .venv/results/$@.log; \
	echo "$$word: $@, Python $$(.venv/$(1)/bin/python -c 'import platform as p; print(p.python_version())')$(2): $$(tail -n 1 \
	.venv/results/$@.log)" >.venv/results/$@; rm .venv/results/$@.log; [ $$word = passed ]

# whole under the oldest and the newest; between them a third of the tests each, so that three neighbours run them all
$(UNIT): unit-%: .venv/%/ready
	$(call ring,$*,,$(if $(filter $*,$(OLDEST) $(NEWEST)),,DOCKFIX_PART=$(lastword $(subst ., ,$*))/3),tests/unit)

$(FAST): fast-%: .venv/$(NEWEST)/ready
	$(call ring,$(NEWEST),,DOCKFIX_PART=$*/4,tests/unit -k 'not killed and not ten_thousand')

# current engines: a ring of their own, for dockfix runs there under that engine's own Python
CURRENT := $(addprefix tests/engine/test_,current.py backup_whole.py containerd_store.py)
half-0 = tests/engine $(addprefix --ignore=,$(CURRENT)) --ignore-glob='*/test_[f-z]*'
half-1 = tests/engine --ignore-glob='*/test_[a-e]*'
first = $(firstword $(CLIENTS))
last  = $(lastword $(CLIENTS))

$(USUAL): usual-%: .venv/$(NEWEST)/ready
	$(call ring,$(NEWEST),$(comma) client $(first),$(ENGINE_TEST) DOCKFIX_TEST_CLIENT=$(first),$(half-$*))

$(addprefix engine-oldest-,$(PARTS)): engine-oldest-%: .venv/$(OLDEST)/ready
	$(call ring,$(OLDEST),$(comma) client $(last),$(ENGINE_TEST) DOCKFIX_TEST_CLIENT=$(last),$(half-$*))

$(addprefix engine-newest-,$(PARTS)): engine-newest-%: .venv/$(NEWEST)/ready
	$(call ring,$(NEWEST),$(comma) client $(first),$(ENGINE_TEST) DOCKFIX_TEST_CLIENT=$(first),$(half-$*))

engine-current: .venv/$(NEWEST)/ready
	$(call ring,$(NEWEST),,,$(CURRENT))

# one machine for each file of tests, as many side by side as there are processors; FULL=1: with Debian's own client, which starts slowly in emulation
VM := $(patsubst tests/vm/test_%.py,vm-%,$(wildcard tests/vm/test_*.py))
$(VM): vm-%: vm-image
	$(call ring,$(NEWEST),,$(vm-client),tests/vm/test_$*.py)

vm-client = $(if $(FULL),,DOCKFIX_TEST_CLIENT=$(firstword $(CLIENTS)))
vm-image: .venv/$(NEWEST)/ready
	@$(vm-client) .venv/$(NEWEST)/bin/python -B tests/vm/machine.py

comma := ,

# the pip that comes with 3.6 stops at a package that needs a newer Python, where later ones look for an older package
.PRECIOUS: .venv/%/ready
.venv/%/ready:
	@$(call python,$*) -c 'import venv, ensurepip' 2>/dev/null || tests/install =python$*-venv
	@$(call python,$*) -m venv --clear .venv/$*
	@$(if $(filter 3.6,$*),$(call pip,$*) pip==21.3.1)
	@$(call pip,$*) pytest
	@touch $@

packages:
	@tests/install dockerd=docker.io =busybox-static debootstrap=debootstrap musl-gcc=musl-tools gcc=gcc =libc6-dev =libfaketime mkfs.vfat=dosfstools mkfs.ext4=e2fsprogs rsync=rsync || :

vm-packages:
	@tests/install qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils mmdebstrap=mmdebstrap mkfs.ext4=e2fsprogs =busybox-static || :

# ---------------------------------------------------------------- the rest

demo: ## the main job, on three containers of a private dockerd (root)
	@tests/install python3=python3 dockerd=docker.io =busybox-static || :
	@python3 -B tests/demo.py

bench: ## how fast it is beside other ways (root; BENCH=storage: only that part; BENCH_N=60 containers, BENCH_ROUNDS=5)
bench: packages vm-packages
	@for part in $(sort $(wildcard tests/bench/bench*$(BENCH).py)); do python3 -B $$part || exit; done

LINT = black==26.10.1 ruff==0.17.6 mypy==2.4.1
sources = dockfix.py $(wildcard tests/*.py tests/*/*.py)

lint: ## black, ruff and mypy, pinned, in an environment of their own; and the syntax under every Python found
lint: $(addprefix lint-,$(VERSIONS)) .venv/lint/ready
	.venv/lint/bin/black -q --check --line-length 100 --target-version py36 $(sources)
	.venv/lint/bin/ruff check -q --no-cache $(sources)
	.venv/lint/bin/mypy --cache-dir=/dev/null dockfix.py

format: .venv/lint/ready ## what black makes of the file and the tests
	.venv/lint/bin/black -q --line-length 100 --target-version py36 $(sources)

.venv/lint/ready: Makefile
	@$(call python,$(NEWEST)) -c 'import venv, ensurepip' 2>/dev/null || tests/install =python$(NEWEST)-venv
	@$(call python,$(NEWEST)) -m venv --clear .venv/lint
	@$(call pip,lint) $(LINT)
	@touch $@

$(addprefix lint-,$(VERSIONS)): lint-%:
	@$(call python,$*) -W error -c 'import pathlib, sys; \
		[compile(pathlib.Path(f).read_bytes(), f, "exec") for f in sys.argv[1:]]' $(sources)
	@echo 'syntax: Python $*'

dist: ## dist/dockfix.py, dist/dockfix.pyz and dist/SHA256SUMS, byte by byte the same on every build
	@python3 -B tests/build_dist.py dist

clean: ## remove .venv, dist and compiled files (the Debian roots in ~/.cache/dockfix-tests stay)
	rm -rf .venv dist
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help test test-fast test-all test-unit test-engine test-vm packages vm-packages vm-image demo bench lint format dist clean engine-current \
	$(UNIT) $(FAST) $(USUAL) $(ENGINE) $(VM) $(addprefix lint-,$(VERSIONS))
