package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package bpf -target bpfel -no-global-types -cflags "-O2 -mcpu=v3 -Wall -Werror" track track.bpf.c
