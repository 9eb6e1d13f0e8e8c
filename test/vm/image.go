package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark/test/vm/initramfs"
	"tidemark/test/vm/wire"
)

// peers are the programs in every guest.
var peers = [...]string{
	"kmod", "modprobe", "insmod", "rmmod", "lsmod", "modinfo",
	"mount", "umount", "findmnt", "losetup", "blockdev", "blkdiscard", "blkzone", "blkid", "lsblk",
	"fsfreeze", "fallocate", "mkswap", "swapon", "swapoff", "wipefs", "dmesg", "sfdisk", "partx",
	"dmsetup", "cryptsetup", "pdata_tools",
	"thin_check", "thin_dump", "thin_delta", "thin_restore", "thin_repair", "thin_metadata_size",
	"era_check", "era_dump", "era_invalidate", "era_restore",
	"mke2fs", "mkfs.ext4", "e2fsck", "fsck.ext4", "tune2fs", "resize2fs", "dumpe2fs", "debugfs",
	"mkfs.xfs", "/sbin/xfs_repair", "xfs_io", "xfs_db",
	"mkfs.btrfs", "btrfs", "btrfstune",
	"sg_dd", "sg_unmap", "sg_write_same", "sg_raw", "nbd-client",
}

// libraries are opened by peers at run time.
var libraries = [...]string{
	"libgcc_s.so.1", "ossl-modules/legacy.so",
}

// applets are the names busybox answers to, for test scripts.
var applets = [...]string{
	"sh", "cat", "cp", "mv", "rm", "ls", "mkdir", "dd", "sync", "sleep", "grep", "sed", "awk", "cmp",
	"find", "seq", "stat", "true", "false", "echo", "sort", "head", "tail", "wc", "tr", "cut", "od",
	"ps", "df", "du", "env", "uname", "touch", "truncate", "tee", "xargs", "md5sum", "sha256sum",
}

// modules are the kernel modules in every guest, beside those they depend on.
var modules = [...]string{
	"virtio_pci", "virtio_blk", "virtio_scsi", "virtio_console", "sd_mod", "sg", "nvme",
	"loop", "nbd", "zram", "brd", "null_blk", "scsi_debug",
	"dm-mod", "dm-era", "dm-snapshot", "dm-thin-pool", "dm-log-writes", "dm-flakey", "dm-crypt",
	"dm-mirror", "dm-multipath", "dm-round-robin", "dm-delay", "dm-raid", "dm-zero", "dm-verity", "dm-integrity", "md-mod", "raid0", "raid1", "raid456",
	"ext4", "xfs", "btrfs", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "fuse", "overlay", "crc32c_generic", "crc32c-intel", "xts", "essiv", "cbc", "ctr",
	"algif_skcipher", "algif_hash", "aesni-intel", "sha256_generic", "lzo", "lzo-rle",
}

// optionalModules are in some kernels only.
var optionalModules = [...]string{"ublk_drv", "crc32c_generic", "crc32c-intel", "sha256_generic", "libcrc32c"}

// image writes the guest's root file system to a new file in dir and returns its path.
func (c cache) image(dir string, cfg Config, p Program) (string, error) {
	base, err := c.base(cfg.Kernel)
	if err != nil {
		return "", err
	}
	parts := []string{base}
	if len(cfg.Programs) > 0 {
		extra, err := c.programs(cfg.Programs)
		if err != nil {
			return "", err
		}
		parts = append(parts, extra)
	}
	file, err := os.Create(filepath.Join(dir, "root.cpio"))
	if err != nil {
		return "", err
	}
	for _, part := range parts {
		if err := appendFile(file, part); err != nil {
			return "", errors.Join(err, file.Close())
		}
	}
	return file.Name(), errors.Join(writeJob(file, cfg, p), file.Close())
}

// boots returns the initramfs that a guest boots, and gives one with a system of its
// own the disk with its job.
func (c cache) boots(dir string, cfg *Config, p Program) (string, error) {
	if cfg.System == nil {
		return c.image(dir, *cfg, p)
	}
	data, err := json.Marshal(job(*cfg))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "job.img")
	if err := os.WriteFile(path, append(data, make([]byte, -len(data)&4095)...), 0o600); err != nil {
		return "", err
	}
	cfg.Disks = append(slices.Clone(cfg.Disks), Disk{Name: wire.JobDisk, Path: path})
	return cfg.System.Initrd, nil
}

// base is the part of the root file system that depends on the kernel only.
func (c cache) base(k Kernel) (string, error) {
	release, err := c.release(k)
	if err != nil {
		return "", err
	}
	key := fmt.Sprint(peers, libraries, applets, modules, optionalModules)
	return c.made("base-"+string(k), key, func(file *os.File) error {
		w := initramfs.NewWriter(file)
		packer := initramfs.NewPacker(w, c.tree())
		err := errors.Join(w.Dir("dev"), w.Char("dev/console", 5, 1),
			packAll(packer.Program, peers[:]...), packAll(packer.Library, libraries[:]...),
			packAll(packer.Program, "/bin/busybox"))
		for _, applet := range applets {
			err = errors.Join(err, w.Symlink("rig/bin/"+applet, "/bin/busybox"))
		}
		return errors.Join(err,
			w.Symlink("bin/sh", "/bin/busybox"),
			w.Modules(c.kernel(k), release, modules[:], optionalModules[:]),
			w.Close())
	})
}

// programs is an archive of further programs with their libraries.
func (c cache) programs(names []string) (string, error) {
	return c.made("programs", strings.Join(names, " "), func(file *os.File) error {
		w := initramfs.NewWriter(file)
		return errors.Join(packAll(initramfs.NewPacker(w, c.tree()).Program, names...), w.Close())
	})
}

func packAll(pack func(string) error, names ...string) error {
	for _, name := range names {
		if err := pack(name); err != nil {
			return err
		}
	}
	return nil
}

// writeJob adds what belongs to one run: init, the test binary, its data and its job.
func writeJob(file io.Writer, cfg Config, p Program) error {
	data, err := json.Marshal(job(cfg))
	if err != nil {
		return err
	}
	w := initramfs.NewWriter(file)
	err = errors.Join(
		w.Copy("init", filepath.Join(filepath.Dir(p.Path), initName)),
		w.Copy(wire.Program, p.Path),
		w.File(wire.JobFile, 0o644, data))
	if p.testdata != "" {
		err = errors.Join(err, w.CopyTree(wire.WorkDir+"/testdata", p.testdata))
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Files)) {
		err = errors.Join(err, w.Copy(name, cfg.Files[name]))
	}
	return errors.Join(err, w.Close())
}

func job(cfg Config) wire.Job {
	j := wire.Job{
		Args: []string{
			"-test.v=test2json", "-test.run=" + cfg.Tests, "-test.skip=" + cfg.Skip,
			"-test.timeout=" + (cfg.Timeout - 5*time.Second).String(),
		},
		Env:     cfg.Env,
		Modules: cfg.Modules,
		Scratch: cfg.ScratchMB > 0,
		End:     cfg.End,
	}
	if next := cfg.Next; next != nil {
		cfg.Env, cfg.End, cfg.Next = next.Env, next.End, next.Next
		then := job(cfg)
		j.Next = &then
	}
	return j
}

func appendFile(w io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}
