#!/bin/sh
# The machine on its restored disk: it is whole, and what was in it on the third night is
# there. The copies go on from the new disk. In the end the package goes, and leaves what
# belongs to copies.
set -eu
systemctl is-active tidemark-job@root.timer
systemctl stop tidemark-job@root.timer tidemark-late.timer # again the clock jumps
date -s "@$(cat /root/clock)"
findmnt /
failed=$(systemctl --failed --plain --no-legend)
test -z "$failed" || { echo "$failed"; exit 1; }
test "$(tail -n 1 /srv/diary)" = "the third day"
test ! -e /srv/zoneinfo/Africa
md5sum --quiet --check /root/sums

mount /backup
sed -i 's|^source.*|source = "/dev/disk/by-id/virtio-new"|' /etc/tidemark/tidemark.toml
if systemctl start tidemark-job@root.service; then
    echo "the copy of one disk was overwritten by another"
    exit 1
fi
tidemark mirror --adopt /dev/disk/by-id/virtio-new /backup/root.img
systemctl start tidemark-job@root.service
tidemark job status
tidemark status --max-age 24h
umount /backup

systemctl start tidemark-job@root.timer tidemark-late.timer
dpkg --purge tidemark
test -z "$(systemctl list-units --all --plain --no-legend 'tidemark-*')"
test ! -e /etc/tidemark
test ! -e /sys/fs/bpf/tidemark
test -d /var/lib/tidemark
