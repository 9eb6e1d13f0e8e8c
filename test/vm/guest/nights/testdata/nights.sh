#!/bin/sh
# Three nights of a machine, from a clean Debian on: the package, a job, and what
# "status --max-age" says at every step. All is as docs/manual has it; but the nights come
# when the script sets the clock, and starts the service that the timer starts.
set -eu

# expect CODE COMMAND... runs a command that must end with that exit code.
expect() {
    want=$1 code=0
    shift
    echo "# $*"
    "$@" || code=$?
    if [ "$code" != "$want" ]; then
        echo "exit code $code instead of $want: $*"
        exit 1
    fi
}
well=0 stale=9
asked() { expect "$1" tidemark status --max-age 24h; }

# night HOW runs the job, which must read all, "full", or only what changed,
# "incremental"; or must "fail".
night() {
    code=0
    systemctl start tidemark-job@root.service || code=$?
    said=$(journalctl --quiet --output cat --unit tidemark-job@root.service --cursor-file /run/read)
    echo "$said"
    if [ "$1" = fail ]; then
        test "$code" != 0
        expect $stale tidemark job status
    else
        test "$code" = 0
        expect 0 tidemark job status
        echo "$said" | grep -q ": $1 ("
    fi
}

dpkg --install /root/tidemark.deb
tidemark doctor
mount /backup
cat >/etc/tidemark/tidemark.toml <<'EOF'
[job.root]
source = "/dev/disk/by-id/virtio-system"
target = "/backup/root.img"
schedule = "*-*-* 02:30"
jitter = "20m"
max-age = "26h"
pre-hook = "test ! -e /run/not-now"
EOF
tidemark job check
tidemark job enable root
systemctl is-active tidemark-job@root.timer tidemark-late.timer
systemctl stop tidemark-job@root.timer tidemark-late.timer # this clock jumps
asked $stale                                               # there is no copy

night full
asked $well

echo "the second day" >/srv/diary
cp -r /usr/share/zoneinfo /srv/zoneinfo
date -s "+25 hours"
asked $stale # too old
night incremental
asked $well

echo "the third day" >>/srv/diary
rm -r /srv/zoneinfo/[A-M]*
touch /run/not-now
night fail
asked $stale # the last run failed
rm /run/not-now
umount /backup
night fail
asked $stale # the copy is not there
test ! -e /backup/root.img
mount /backup
date -s "+25 hours"
find / -xdev -type f ! -path '/var/*' ! -path '/root/sum*' >/root/summed
xargs -d '\n' md5sum </root/summed >/root/sums
date +%s >/root/clock
night incremental
asked $well
tidemark status
umount /backup
