#!/bin/sh
# Nothing is mounted while an era device is not open.
# Written by "tidemark boot install".

modprobe -q dm-era
until /usr/bin/tidemark boot open --stage initramfs --wait 30s; do
    warn "tidemark: root is not mounted while an era device is not open. Exit the shell to try again."
    if getargbool 1 rd.shell; then
        emergency_shell -n tidemark "an era device is not open"
    else
        die "an era device is not open"
    fi
done
