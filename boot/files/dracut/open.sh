#!/bin/sh
# Opens the devices, each time that devices have appeared.
# Written by "tidemark boot install".

modprobe -q @MODULE@
/usr/bin/tidemark boot open --stage initramfs >/dev/null 2>&1 || :
