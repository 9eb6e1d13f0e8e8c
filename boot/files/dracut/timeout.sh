#!/bin/sh
# Root was not found: says what is wrong with the era devices.
# Written by "tidemark boot install".

/usr/bin/tidemark boot open --stage initramfs ||
    warn "tidemark: root is not mounted while an era device is not open"
