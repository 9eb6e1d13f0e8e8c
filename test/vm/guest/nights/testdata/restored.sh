#!/bin/sh
# The machine on its restored disk: it is whole, and what was in it on the third night is
# there. In the end the package goes, and leaves what belongs to copies.
set -eu
date -s "@$(cat /root/clock)"
findmnt /
failed=$(systemctl --failed --plain --no-legend)
test -z "$failed" || { echo "$failed"; exit 1; }
test "$(tail -n 1 /srv/diary)" = "the third day"
test ! -e /srv/zoneinfo/Africa
md5sum --quiet --check /root/sums

systemctl is-active tidemark-job@root.timer
dpkg --purge tidemark
test -z "$(systemctl list-units --all --plain --no-legend 'tidemark-*')"
test ! -e /etc/tidemark
test ! -e /sys/fs/bpf/tidemark
test -d /var/lib/tidemark
