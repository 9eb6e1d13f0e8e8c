#!/bin/sh
# The root disk is lost. A rescue system has the backup disk and a new, larger one.
set -eu
mkdir -p /backup
mount -o ro "$BACKUP" /backup
tidemark --state-dir /tmp mirror /backup/root.img "$NEW"
sfdisk --dump "$NEW"
