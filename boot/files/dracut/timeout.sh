#!/bin/sh
# Root was not found: says what is wrong with the devices, once.
# Written by "tidemark boot install".

if [ ! -e /run/tidemark/boot-said ]; then
    mkdir -p /run/tidemark
    : >/run/tidemark/boot-said
    /usr/bin/tidemark boot open --stage initramfs ||
        warn "tidemark: root is not mounted while a device of /etc/tidemark/era.conf is not open"
fi
