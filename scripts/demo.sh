#!/usr/bin/env bash
# A live incremental mirror, from start to proof: a loop device with ext4, a
# program that never stops writing to it, two mirrors, and a comparison byte for
# byte. Needs root; leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ((EUID != 0)); then exec sudo "$0" "$@"; fi

tidemark=$PWD/bin/tidemark
work=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-demo.XXXXXX")
# Apart from whatever tidemark tracks on this machine otherwise.
export TIDEMARK_RUN_DIR=$work/run TIDEMARK_STATE_DIR=$work/state TIDEMARK_BPFFS=$work/bpf
mkdir "$work/bpf"
loop='' writer=''

cleanup() {
    set +e
    stop_writer
    mountpoint -q "$work/mnt" && umount "$work/mnt"
    if [[ -n $loop ]]; then
        "$tidemark" track stop "$loop" 2>/dev/null
        losetup -d "$loop"
    fi
    mountpoint -q "$work/bpf" && umount "$work/bpf"
    rm -rf --one-file-system "$work"
}
stop_writer() {
    [[ -n $writer ]] || return 0
    touch "$work/stop" # a kill would leave what it has just started, for a moment, on the filesystem
    wait "$writer" 2>/dev/null || true
    writer=''
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "${*//$tidemark/tidemark}"; "$@"; }

# load writes files, renames them, syncs some and deletes the oldest, until it is stopped.
load() {
    local i=0
    while [[ ! -e $work/stop ]]; do
        i=$((i + 1))
        head -c $((RANDOM * 32 + 1)) /dev/urandom >"$work/mnt/busy/new"
        mv "$work/mnt/busy/new" "$work/mnt/busy/file-$((i % 40))"
        ((i % 10)) || sync -f "$work/mnt/busy"
    done
}

say "A disk of 1 GiB with ext4, half full, and a program that keeps writing to it"
truncate -s 1G "$work/disk.raw"
loop=$(losetup --find --show --direct-io=on "$work/disk.raw" 2>/dev/null || losetup --find --show "$work/disk.raw")
mkfs.ext4 -q "$loop"
mkdir "$work/mnt"
mount "$loop" "$work/mnt"
mkdir "$work/mnt/busy"
head -c 400M /dev/urandom >"$work/mnt/still"
load &
writer=$!
show df -h "$work/mnt"

say "First mirror: everything in use"
show "$tidemark" mirror "$loop" "$work/mirror.img"

say "More writes: 20 MiB in the middle of the large file"
head -c 20M /dev/urandom | dd of="$work/mnt/still" bs=1M seek=100 conv=notrunc,fsync status=none

say "Second mirror: what changed, and nothing else"
show "$tidemark" mirror "$loop" "$work/mirror.img"
show "$tidemark" track status "$loop"

say "The mirror, made while the disk was in use, is a clean filesystem"
show e2fsck -fn "$work/mirror.img"

say "Proof: stop writing, unmount, mirror once more, compare every byte"
stop_writer
umount "$work/mnt"
show "$tidemark" mirror "$loop" "$work/mirror.img"
show cmp "$loop" "$work/mirror.img"
echo "equal: $(stat -c %s "$work/mirror.img") bytes; on disk the mirror takes $(du -h "$work/mirror.img" | cut -f1)"
show "$tidemark" verify "$work/mirror.img"
show "$tidemark" status "$work/mirror.img"
