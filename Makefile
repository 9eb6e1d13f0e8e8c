# tidemark: make demo and make test do all their own set-up; see README.md.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOL    := go tool -modfile=tools/go.mod
FUZZTIME ?= 1s

# Folders whose tests run as built for users, one after the other, as they share mounts and start
# commands by the hundred.
ALONE := tidemark/test/|tidemark/bench|tidemark/vault$$|tidemark/cmd/tidemark$$
# Folders in which things run at once: their tests run with the race detector, and those with models
# or machines that boot, which it makes ten times slower, in short there and whole without it.
RACE   = $$(grep -rlE --include='*.go' --exclude='*_test.go' '\bgo (func|[a-zA-Z.]+\()|\.Go\(|"sync"|errgroup' . | xargs -n1 dirname | sort -u | xargs go list | grep -vE '$(ALONE)')
MODELS := ./track/bpf ./transfer ./transfer/apply ./transfer/merge ./transfer/transaction

# The race detector alone needs cgo; everything else is built without.
export CGO_ENABLED := 0

.PHONY: help build install uninstall packages demo test test-kernels soak setup setup-vm setup-s3 generate man bench vuln fmt lint clean \
	check-fmt check-vet check-shape check-static check-fix check-generated check-tidy \
	test-race test-plain test-fuzz test-slow

.DEFAULT_GOAL := build

build: ## bin/tidemark, one static binary, and bin/tidemark-boot, what an initramfs has of it
	go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/tidemark ./cmd/tidemark-boot

install: ## into prefix=/usr/local, after make build (DESTDIR=, sysconfdir=/etc; root)
	DESTDIR="$(DESTDIR)" prefix="$(prefix)" sysconfdir="$(sysconfdir)" scripts/install

uninstall: ## what make install installed, but the configuration (root)
	DESTDIR="$(DESTDIR)" prefix="$(prefix)" sysconfdir="$(sysconfdir)" scripts/install --remove

packages: build ## a Debian and an RPM package, in bin/
	scripts/packages

demo: setup build ## show a live incremental mirror on a loop device (root)
	scripts/demo.sh

test: setup setup-vm setup-s3 lint test-race test-plain test-fuzz test-slow ## everything CI runs (root)

test-kernels: setup setup-vm ## the tests of test/vm, all of them on every kernel of the rig (root; an hour or two)
	scripts/as-root go test -count=1 -timeout 0 ./test/vm -all-kernels

soak: setup ## the random tests for hours, with more steps and new seeds (root; see scripts/soak)
	scripts/as-root env SEQUENCES=$(SEQUENCES) CHECKS=$(CHECKS) ROUNDS=$(ROUNDS) RUNS=$(RUNS) FUZZTIME=$(if $(filter file,$(origin FUZZTIME)),,$(FUZZTIME)) scripts/soak

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 10

setup: ## the Debian packages that demo and test use
	scripts/setup

setup-vm: setup ## the kernels, QEMU, guest tools and Debian root of test/vm, in the user's cache
	scripts/as-root scripts/vm-setup
	scripts/as-root scripts/vm-root

setup-s3: ## the S3 server of the tests of vault/store, in the user's cache (minutes, once)
	scripts/as-root scripts/s3-server

generate: setup ## rebuild the committed eBPF objects (clang)
	cd linux/bpf && go generate .

man: ## rebuild man/ and completions/ from the command tree
	rm -f man/*.1
	go run ./cmd/tidemark man man
	go run ./cmd/tidemark completion bash >completions/tidemark.bash
	go run ./cmd/tidemark completion zsh >completions/_tidemark
	go run ./cmd/tidemark completion fish >completions/tidemark.fish

bench: setup build ## the numbers of docs/benchmarks.md (root)
	bench/run

vuln: ## known vulnerabilities of our dependencies (needs the network)
	go run golang.org/x/vuln/cmd/govulncheck@v1.8.0 ./...

fmt: ## format the code
	$(TOOL) gofumpt -w .

clean:
	rm -rf bin

lint: check-fmt check-vet check-shape check-static check-fix check-generated check-tidy

check-fmt:
	@bad=$$($(TOOL) gofumpt -l .); [[ -z $$bad ]] || { echo "not formatted (make fmt):" $$bad; exit 1; }

check-vet:
	go vet ./...

check-shape:
	go test .

check-static:
	$(TOOL) staticcheck ./...

check-fix:
	go fix -diff ./...

check-generated:
	scripts/check-generated

check-tidy:
	go mod tidy -diff
	cd tools && go mod tidy -diff
	cd tools/nfpm && go mod tidy -diff

test-race:
	scripts/as-root env CGO_ENABLED=1 go test -vet=off -race -short -p 3 -timeout 30m $(RACE)

test-plain:
	tool=$$(scripts/bench-tools); scripts/as-root env ERA_TOOLS_1="$${tool%/*}" go test -vet=off -p 3 -timeout 30m $(MODELS) $$(comm -23 <(go list ./... | grep -vE '$(ALONE)' | sort) <(printf '%s\n' $(RACE) | sort))

test-fuzz:
	scripts/fuzz $(FUZZTIME)

# Last, and the last lines are go test's own summary.
test-slow: build
	tool=$$(scripts/bench-tools); scripts/as-root env ERA_TOOLS_1="$${tool%/*}" go test -vet=off -p 1 -count=1 -timeout 70m $$(go list ./... | grep -E '$(ALONE)')
