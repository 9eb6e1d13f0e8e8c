#!/bin/sh
# Root was not found: says what is wrong with the era devices.
# Written by "tidemark boot install".

/usr/bin/tidemark boot open --stage initramfs 2>&1 | vwarn
