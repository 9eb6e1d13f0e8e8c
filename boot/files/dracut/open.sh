#!/bin/sh
# Opens the devices, each time that devices have appeared.
# Written by "tidemark boot install".

@LOAD@
/usr/bin/tidemark boot open --stage initramfs >/dev/null 2>&1 || :
