#!/bin/bash
# Copies what opens the devices of /etc/tidemark/era.conf into the initramfs.
# Written by "tidemark boot install".

# shellcheck disable=SC2154 # moddir and the like are set by dracut

check() {
    [[ -s "${dracutsysrootdir-}/etc/tidemark/era.conf" ]]
}

depends() {
    echo base udev-rules
}

installkernel() {
    hostonly='' @INSTMODS@
    hostonly='' instmods -s crc32c_generic crc32c-intel || :
}

install() {
    inst_simple @EARLY@ /usr/bin/tidemark
    inst_simple /etc/tidemark/era.conf
    inst_simple /etc/udev/rules.d/61-tidemark-era.rules
    # By this name "tidemark boot status" sees what the image was made of.
    local sum
    sum=$(sha256sum @SOURCES@ | sha256sum)
    : >"${initdir:?}/etc/tidemark/image-${sum%% *}"
    inst_hook initqueue/settled 50 "$moddir/open.sh"
    inst_hook initqueue/timeout 01 "$moddir/timeout.sh"
    inst_hook pre-mount 01 "$moddir/guard.sh"
}
