#!/bin/sh
# Nothing is mounted while an era device is not open.
# Written by "tidemark boot install".

modprobe -q dm-era
while ! /usr/bin/tidemark boot open --stage initramfs --wait 30s; do
    warn "tidemark: root is not mounted while an era device is not open. Exit this shell to try again."
    emergency_shell -n tidemark "an era device is not open"
done
