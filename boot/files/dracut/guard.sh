#!/bin/sh
# Nothing is mounted while a device of /etc/tidemark/era.conf is not open.
# Written by "tidemark boot install".

@LOAD@
until /usr/bin/tidemark boot open --stage initramfs --wait 30s; do
    warn "tidemark: root is not mounted while a device of /etc/tidemark/era.conf is not open. Exit the shell to try again."
    if getargbool 1 rd.shell; then
        emergency_shell -n tidemark "a device of /etc/tidemark/era.conf is not open"
    else
        die "a device of /etc/tidemark/era.conf is not open"
    fi
done
