#!/bin/sh
# Three nights of a machine, from its first minute: the package, a job, and what
# "status --max-age" says at every step. The clock is moved on by hand.
set -eu

# expect CODE COMMAND... runs a command that must end with that exit code.
expect() {
    want=$1
    shift
    echo "# $*"
    code=0
    "$@" || code=$?
    if [ "$code" != "$want" ]; then
        echo "exit code $code instead of $want: $*"
        exit 1
    fi
}

expect 0 dpkg --install /root/tidemark.deb
expect 0 tidemark doctor
mount /backup
expect 0 tidemark mirror /dev/disk/by-id/virtio-system /backup/root.img
echo change > /srv/change
expect 0 tidemark mirror /dev/disk/by-id/virtio-system /backup/root.img
find / -xdev -type f ! -path '/var/*' ! -path /root/sums ! -path '/etc/*' -exec sha256sum {} + >/root/sums
wc -l /root/sums
echo ---
expect 0 tidemark mirror /dev/disk/by-id/virtio-system /backup/root.img
umount /backup
