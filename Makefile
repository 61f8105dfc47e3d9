# Targets for users: build, install, install-microvms, uninstall, demo, test. For engineers: test-engines, lint, vuln, fuzz, proof, mutants, chaos, crowd, microvms, bench.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

PREFIX ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GO ?= go
# The tools are pinned in a module of their own, so that they do not decide which versions watcher is built with.
TOOL := $(GO) tool -modfile=.ci/tools.mod

.PHONY: build
build: bin/watcher

# Go knows better than make what has changed.
.PHONY: bin/watcher
bin/watcher:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/watcher

UNITS := watcher.service watcher-scan.service watcher-scan.timer
UNITDIR := $(DESTDIR)/usr/lib/systemd/system
CATALOGDIR := $(DESTDIR)/usr/lib/systemd/catalog
# Only for rules about Firecracker microVMs: systemd/microvms.conf says why it is not in the units.
DROPINS := $(addsuffix .d/microvms.conf,$(addprefix $(UNITDIR)/,$(filter %.service,$(UNITS))))

.PHONY: install
install: build
	install -D -m 0755 bin/watcher $(DESTDIR)$(PREFIX)/bin/watcher
	install -d $(UNITDIR)
	for unit in $(UNITS); do \
		sed 's|/usr/local/bin/watcher|$(PREFIX)/bin/watcher|g' systemd/$$unit > $(UNITDIR)/$$unit; \
		chmod 0644 $(UNITDIR)/$$unit; \
	done
	install -D -m 0644 systemd/watcher.catalog $(CATALOGDIR)/watcher.catalog
	for dropin in $(DROPINS); do if [ -e $$dropin ]; then install -m 0644 systemd/microvms.conf $$dropin; fi; done
	if [ -z "$(DESTDIR)" ]; then \
		journalctl --update-catalog || true; \
		if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
		echo "Installed. Next: systemctl enable --now watcher"; \
	fi

.PHONY: install-microvms
install-microvms:
	for dropin in $(DROPINS); do install -D -m 0644 systemd/microvms.conf $$dropin; done
	if [ -z "$(DESTDIR)" ]; then \
		if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
		echo "Installed. Next: systemctl restart watcher"; \
	fi

.PHONY: uninstall
uninstall:
	if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl disable --now watcher.service watcher-scan.timer; fi
	rm -f $(DESTDIR)$(PREFIX)/bin/watcher $(CATALOGDIR)/watcher.catalog
	for unit in $(UNITS); do rm -f $(UNITDIR)/$$unit; done
	for dropin in $(DROPINS); do rm -f $$dropin; rmdir $${dropin%/*} 2>/dev/null || true; done
	if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

# What the tests and the demo need besides Go. Packages that are there are left as they are.
.PHONY: engine testdeps
engine:
	.ci/packages docker.io iptables
testdeps:
	.ci/packages docker.io iptables iproute2 sudo systemd python3 nodejs podman netavark uidmap qemu-system-x86

.PHONY: demo
demo: engine build
	$(GO) build -o bin/demo ./cmd/demo
	bin/demo --watcher bin/watcher

# A test binary at a time: several have an engine each, and two cores serve one of them best. Without cgo there is no
# race detector.
RACE := $(shell [ "$$($(GO) env CGO_ENABLED)" = 1 ] && command -v gcc >/dev/null && echo -race)
.PHONY: test
test: testdeps
	@if [ "$$(id -u)" != 0 ]; then echo "Not root: tests that need an engine, the process connector or the journal are skipped and say so."; fi
	$(TOOL) gotestsum --format pkgname-and-test-fails -- -count=1 -p 1 $(RACE) -timeout 20m ./...
	@echo "The walk and the histories of the core, which is pure and has no races to find:"
	$(GO) test -count=1 -timeout 15m ./reap -run '^(TestWalk|TestHistories)$$' -v | grep -v '^=== '

# The newest engine and a runc that is new enough for it, built once: five minutes on two cores. It runs on the containerd
# of docker.io. CI can keep the folder.
ENGINES := $(CURDIR)/.engines
MOBY := v2.0.0-beta.24
RUNC := v1.5.2
$(ENGINES)/moby-$(MOBY)/dockerd:
	CGO_ENABLED=0 GOBIN=$(@D) $(GO) install -ldflags '-s -w' github.com/moby/moby/v2/cmd/dockerd@$(MOBY)
$(ENGINES)/runc-$(RUNC)/runc: | enginedeps
	CGO_ENABLED=1 GOBIN=$(@D) $(GO) install -ldflags '-s -w' -tags seccomp github.com/opencontainers/runc@$(RUNC)

.PHONY: enginedeps
enginedeps: testdeps
	.ci/packages gcc libc6-dev libseccomp-dev pkg-config

# What is demanded of an engine, demanded of Debian's, of the newest and of Podman. None may be missing.
.PHONY: test-engines
test-engines: enginedeps $(ENGINES)/moby-$(MOBY)/dockerd $(ENGINES)/runc-$(RUNC)/runc
	mkdir -p $(ENGINES)/bin
	ln -sf ../moby-$(MOBY)/dockerd ../runc-$(RUNC)/runc $(ENGINES)/bin/
	WATCHER_ENGINES=all $(GO) test -count=1 -p 1 $(RACE) -timeout 20m -v \
		-run '^(TestConformance|TestAfterwards|TestRestart)$$' ./platform/docker/... | grep -v '^ *=== '

.PHONY: lint
lint:
	unformatted=$$($(TOOL) gofumpt -l cmd watch reap platform); \
	if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	GOOS=darwin $(GO) vet ./platform/connector ./platform/process ./platform/journal ./platform/systemd
	$(TOOL) staticcheck ./...
	$(GO) mod tidy -diff

# Every fuzz test of the module in turn: go can fuzz but one at a time. What is interesting is hardly minimised, which would
# take longer than the fuzzing.
FUZZTIME ?= 5s
.PHONY: fuzz
fuzz:
	@packages=$$($(GO) list ./...); \
	for package in $$packages; do \
		listed=$$($(GO) test -list '^Fuzz' $$package); \
		for test in $$(grep '^Fuzz' <<< "$$listed" || true); do \
			echo "$$package $$test"; \
			GO=$(GO) .ci/fuzz $$package -run '^$$' -fuzz "^$$test$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x; \
		done; \
	done

.PHONY: bench
bench: testdeps
	$(GO) test ./cmd/watcher -run "^$$" -bench Reap -benchtime 120x

# Needs the vulnerability database, which a machine without the Internet cannot reach.
.PHONY: vuln
vuln:
	$(TOOL) govulncheck ./...

# The walk of the core over larger casts, and eight million events of random histories.
.PHONY: proof
proof:
	WATCHER_PROOF=full $(GO) test ./reap -run '^(TestWalk|TestHistories)$$' -v -timeout 4h

# A thousand sandboxes and every fault at once, with a table at the end. WATCHER_CHAOS_SEED replays the draws of another run.
CHAOS_N ?= 1000
.PHONY: chaos
chaos: testdeps
	WATCHER_CHAOS_N=$(CHAOS_N) $(GO) test ./cmd/watcher $(RACE) -run '^TestChaos$$' -count=1 -v -timeout 30m

# A host full of sandboxes, half of them with a dead owner, with a table of how long it took. CROWD_N is how many each has.
CROWD_N ?= 500
.PHONY: crowd
crowd: testdeps
	WATCHER_CROWD_N=$(CROWD_N) $(GO) test ./cmd/watcher -run '^TestCrowd$$' -count=1 -v -timeout 90m | grep -v '^ *{"time"'

# Fifty microVMs of a runner that is killed, with a table of how long until they are dead and until all is removed.
MICROVM_ROUNDS ?= 10
.PHONY: microvms
microvms: testdeps
	WATCHER_MICROVM_ROUNDS=$(MICROVM_ROUNDS) $(GO) test ./cmd/watcher -run '^TestFiftyMicroVMs$$' -count=1 -v -timeout 30m

# A hundred mistakes in the core, one at a time: the tests must notice each. WATCHER_MUTANTS may be a part of one's story.
WATCHER_MUTANTS ?= all
.PHONY: mutants
mutants:
	WATCHER_MUTANTS='$(WATCHER_MUTANTS)' $(GO) test ./reap -run '^TestMutants$$' -count=1 -v -timeout 1h
