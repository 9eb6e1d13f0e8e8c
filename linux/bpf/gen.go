package bpf

//go:generate go tool -modfile=../../tools/go.mod bpf2go -go-package bpf -target bpfel -no-global-types -cflags "-O2 -mcpu=v3 -Wall -Werror" track track.bpf.c
//go:generate go tool -modfile=../../tools/go.mod bpf2go -go-package bpf -target bpfel -no-global-types -cflags "-O2 -mcpu=v3 -Wall -Werror -DPLAIN" plain track.bpf.c
