#!/bin/sh
# The root disk is lost. A rescue system has the backup disk, and a new, larger one for
# the machine.
set -eu
mkdir -p /backup
mount "$BACKUP" /backup
tidemark restore /backup/root.img "$NEW"
umount /backup
blockdev --rereadpt "$NEW"
sfdisk --verify "$NEW"
if [ "$(blkid --match-tag TYPE --output value "$NEW"1)" = xfs ]; then
    mount -t xfs "$NEW"1 /backup # XFS replays its log, which a check would not
    umount /backup
    xfs_repair -n "$NEW"1
else
    e2fsck -fn "$NEW"1
fi
