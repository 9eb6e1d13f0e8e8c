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
blkid "$NEW"1
