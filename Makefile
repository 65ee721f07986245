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
sources = dockfix.py $(wildcard tests/*.py tests/*/*.py)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# ---------------------------------------------------------------- tests
# A ring is one suite under one Python, a target of its own; make runs them side by side and goes on after a failure.

UNIT     := $(addprefix unit-,$(VERSIONS))
# the second run differs in Python or in the docker client, or is left out; each in two halves, with an engine of their own
ENGINE    = $(foreach run,oldest $(if $(filter-out $(OLDEST),$(NEWEST))$(word 2,$(CLIENTS)),newest),engine-$(run)-a engine-$(run)-b)

test: RINGS = $(ENGINE) $(UNIT)
test test-engine: JOBS = $$(($$(nproc) + 3))    # they wait a lot
test: ## both rings: tests/unit under every Python 3.6+ found (between oldest and newest a third of it each), tests/engine under these two
test-unit: RINGS = $(UNIT)
test-unit: ## without an engine, under every Python found (the same)
test-engine: RINGS = $(ENGINE)
test-engine: ## on a private dockerd (root; installs docker.io, busybox-static, debootstrap, gcc, musl-tools, libfaketime, dosfstools, e2fsprogs and rsync when missing)
test-vm: RINGS = $(VM)
test-vm: ## in a virtual machine with a real devicemapper pool (root, x86_64; installs qemu and mmdebstrap when missing; FULL=1: all of it)
test test-engine: packages
test-vm: vm-packages

test test-unit test-engine test-vm:
	@$(if $(VERSIONS),,echo 'no Python 3.6 or newer found (Debian: apt-get install python3-venv)' >&2; exit 1)
	@rm -rf .venv/results && mkdir -p .venv/results
	@for ring in $(RINGS); do echo "NOT RUN: $$ring (reason above)" >.venv/results/$$ring; done
	@$(MAKE) --no-print-directory -k -O $(if $(findstring -j,$(MAKEFLAGS)),,-j$(or $(JOBS),$$(nproc))) $(RINGS) || :
	@echo; $(if $(or $(word 2,$(CLIENTS)),$(filter test-unit test-vm,$@)),,echo 'one docker client found: $(CLIENTS)';) \
		cat $(addprefix .venv/results/,$(RINGS))
	@! grep -q '^FAILED' .venv/results/* && grep -q '^passed' .venv/results/* && \
		{ [ "$$CI" != true ] || ! grep -q '^NOT RUN' .venv/results/*; }

# $(1): Python's version; $(2): what else there is to say; $(3): environment; $(4): tests
ring = @$(3) $(call pytest,$(1)) $(4) >.venv/results/$@.log 2>&1 && word=passed || word=FAILED; \
	echo "== $@"; cat .venv/results/$@.log; \
	echo "$$word: $(4), Python $$(.venv/$(1)/bin/python -c 'import platform as p; print(p.python_version())')$(2): $$(tail -n 1 \
	.venv/results/$@.log)" >.venv/results/$@; rm .venv/results/$@.log; [ $$word = passed ]

# whole under the oldest and the newest; between them a third of the tests each, so that three neighbours run them all
$(UNIT): unit-%: .venv/%/ready
	$(call ring,$*,,$(if $(filter $*,$(OLDEST) $(NEWEST)),,DOCKFIX_SAMPLE=1),tests/unit)

half-a = tests/engine --ignore-glob='*/test_[f-z]*'
half-b = tests/engine --ignore-glob='*/test_[a-e]*'

engine-oldest-a engine-oldest-b: engine-oldest-%: .venv/$(OLDEST)/ready
	$(call ring,$(OLDEST),$(comma) client $(lastword $(CLIENTS)),DOCKFIX_TEST_CLIENT=$(lastword $(CLIENTS)),$(half-$*))

engine-newest-a engine-newest-b: engine-newest-%: .venv/$(NEWEST)/ready
	$(call ring,$(NEWEST),$(comma) client $(firstword $(CLIENTS)),DOCKFIX_TEST_CLIENT=$(firstword $(CLIENTS)),$(half-$*))

# one machine for each file of tests, as many side by side as there are processors; FULL=1: with Debian's own client, which starts slowly in emulation
VM := $(patsubst tests/vm/test_%.py,vm-%,$(wildcard tests/vm/test_*.py))
$(VM): vm-%: vm-image
	$(call ring,$(NEWEST),,$(client),tests/vm/test_$*.py)

client = $(if $(FULL),,DOCKFIX_TEST_CLIENT=$(firstword $(CLIENTS)))
vm-image: .venv/$(NEWEST)/ready
	@$(client) .venv/$(NEWEST)/bin/python -B tests/vm/machine.py

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

lint: ## syntax under every Python found, and pyflakes where it can be installed
lint: $(addprefix lint-,$(VERSIONS)) .venv/$(NEWEST)/ready
	@$(call pip,$(NEWEST)) pyflakes || echo 'pyflakes cannot be installed here' >&2
	@! .venv/$(NEWEST)/bin/python -m pyflakes $(sources) | grep -v '^dockfix.py:4:'  # line 4 talks to old Pythons

$(addprefix lint-,$(VERSIONS)): lint-%:
	@$(call python,$*) -W error -c 'import pathlib, sys; \
		[compile(pathlib.Path(f).read_bytes(), f, "exec") for f in sys.argv[1:]]' $(sources)
	@echo 'syntax: Python $*'

dist: ## dist/dockfix.py, dist/dockfix.pyz and dist/SHA256SUMS, byte by byte the same on every build
	@python3 -B tests/build_dist.py dist

clean: ## remove .venv, dist and compiled files (the Debian roots in ~/.cache/dockfix-tests stay)
	rm -rf .venv dist
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help test test-unit test-engine test-vm packages vm-packages vm-image demo bench lint dist clean engine-oldest-a engine-oldest-b engine-newest-a engine-newest-b \
	$(UNIT) $(VM) \
	$(addprefix lint-,$(VERSIONS))
