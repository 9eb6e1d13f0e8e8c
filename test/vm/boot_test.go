package vm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/boot"
)

// bootTimeout is for a Debian that is emulated while the machine does other things.
const bootTimeout = 12 * time.Minute

// A Debian with root on an era device boots through the initramfs that its own programs
// made, after a clean reboot and after a power cut; each time an incremental mirror
// follows, equal to root byte for byte.
func TestRootOnEra(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/boot")
	command := BuildTidemark(t)
	type machine struct {
		kernel    Kernel
		generator Generator
		root      string // for the kernel
	}
	for _, c := range oneOf([]machine{ // TestAdoptedDisks has the other generator
		{Linux61, InitramfsTools, "root=UUID=" + RootUUID},
		{Linux612, Dracut, "root=/dev/mapper/root rd.shell=0 rd.emergency=reboot rd.retry=5"},
	}) {
		t.Run(fmt.Sprintf("%s, %s", c.kernel, c.generator), func(t *testing.T) {
			t.Parallel()
			m := newRootOnEra(t, c.kernel, c.generator, program, command)
			m.system.Args = c.root + " ro systemd.show_status=0"
			m.boot(t, program, 1, false)
			m.boot(t, program, 2, true)
			m.boot(t, program, 3, false)
			m.refused(t, program)
		})
	}
}

// rootOnEra is a system whose root is on an era device, and where its mirror goes.
type rootOnEra struct {
	kernel            Kernel
	system            System
	root, copy, state Disk
}

func newRootOnEra(t *testing.T, k Kernel, g Generator, program Program, command string) *rootOnEra {
	d := NewDebian(t, k, g, program)
	d.InstallTidemark(command)
	d.Write("/etc/fstab", "UUID="+RootUUID+" / ext4 defaults 0 1\n")
	host(t, command, "boot", "install", "--root", d.Dir, "--era", "root",
		"--data", "PARTUUID="+RootPartUUID, "--meta", "PARTUUID="+MetaPartUUID, "--create", "64K")
	initrd := d.initramfs(g)
	imageState(t, command, d.Dir, initrd, "current")
	table := filepath.Join(d.Dir, "etc/tidemark/era.conf")
	before, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	d.Write("/etc/tidemark/era.conf", string(before)+"# changed\n")
	imageState(t, command, d.Dir, initrd, "stale")
	d.Write("/etc/tidemark/era.conf", string(before))
	host(t, "cp", filepath.Join(d.Dir, initrd), d.Dir+"/boot/initrd.img-cut")
	host(t, "truncate", "--size=-1M", d.Dir+"/boot/initrd.img-cut")
	imageState(t, command, d.Dir, "/boot/initrd.img-cut", "unknown")
	host(t, "rm", d.Dir+"/boot/initrd.img-cut")
	host(t, command, "boot", "status", "--root", d.Dir)
	m := &rootOnEra{kernel: k, copy: NewDisk(t, "copy", RootSize), state: NewDisk(t, "state", 64<<20)}
	m.system, m.root = d.Disk(initrd)
	m.root.Volatile, m.root.Seed = true, uint64(time.Now().UnixNano())
	t.Log("seed", m.root.Seed)
	host(t, "mkfs.ext4", "-q", m.state.Path)
	return m
}

// imageState fails unless "boot status" says that of an initramfs of the system in dir.
func imageState(t *testing.T, command, dir, image, want string) {
	t.Helper()
	out, err := exec.Command(command, "boot", "status", "--root", dir, "--json").Output()
	var status boot.Status
	if jsonErr := json.Unmarshal(out, &status); jsonErr != nil {
		t.Fatalf("%v, %v: %s", err, jsonErr, out)
	}
	for _, i := range status.Images {
		if i.Path == image && string(i.State) == want {
			return
		}
	}
	t.Errorf("%s is not %s: %+v", image, want, status.Images)
}

// boot boots once, until the system has shut down or its power is cut.
func (m *rootOnEra) boot(t *testing.T, program Program, number int, cut bool) {
	t.Helper()
	env := []string{fmt.Sprintf("BOOT=%d", number), "ROOT_UUID=" + RootUUID, "DATA_PARTUUID=" + RootPartUUID}
	if cut {
		env = append(env, "CUT=1")
	}
	compared := false
	r := Run(t, m.config(Config{Env: env, OnEvent: func(guest *Machine, event string) string {
		switch event {
		case "compare":
			compared = true
			return m.compare()
		case "synced 2":
			guest.PowerCut()
		}
		return ""
	}}), program)
	t.Logf("boot %d: up after %v, all %v, %d tests, lost %v", number, r.Boot, r.Total, r.Tests, r.Lost)
	if !compared || r.Cut != cut {
		t.Fatalf("boot %d: compared: %v, cut: %v", number, compared, r.Cut)
	}
}

func (m *rootOnEra) config(cfg Config) Config {
	cfg.Kernel, cfg.System, cfg.MemMB, cfg.Timeout = m.kernel, &m.system, 768, bootTimeout
	cfg.Disks = []Disk{m.root, m.copy, m.state}
	return cfg
}

// compare compares root's partition with its mirror; the guest has written out both.
func (m *rootOnEra) compare() string {
	return compareImages(m.root.Path, RootStart, m.copy.Path, RootSize)
}

// compareImages compares that many bytes of an image, from a byte on, with those of another from its
// beginning on. It returns "same", or what differs.
func compareImages(image string, start int64, other string, size int64) string {
	a, err := os.Open(image)
	if err != nil {
		return err.Error()
	}
	defer a.Close()
	b, err := os.Open(other)
	if err != nil {
		return err.Error()
	}
	defer b.Close()
	const piece = 1 << 20
	have, want := make([]byte, piece), make([]byte, piece)
	var differ []string
	for off := int64(0); off < size; off += piece {
		if _, err := a.ReadAt(want, start+off); err != nil && err != io.EOF {
			return err.Error()
		}
		if _, err := b.ReadAt(have, off); err != nil && err != io.EOF {
			return err.Error()
		}
		if !bytes.Equal(have, want) {
			differ = append(differ, fmt.Sprint(off>>20))
		}
	}
	if len(differ) > 0 {
		return "they differ at MiB " + strings.Join(differ, " ")
	}
	return "same"
}

// refused boots with damaged metadata: nothing is mounted, and the console says what
// is wrong and what to do.
func (m *rootOnEra) refused(t *testing.T, program Program) {
	t.Helper()
	file, err := os.OpenFile(m.root.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("damage"), RootStart+RootSize+100); err != nil {
		t.Fatal(err)
	}
	r := Run(t, m.config(Config{NoTests: true}), program)
	for _, want := range []string{"root is not mounted while a device of /etc/tidemark/era.conf is not open", "tidemark era check /dev/disk/by-partuuid/" + MetaPartUUID} {
		if !strings.Contains(r.Console, want) {
			t.Errorf("the console does not say %q\n%s", want, tail(r.Console))
		}
	}
	if strings.Contains(r.Console, "EXT4-fs (") {
		t.Errorf("something was mounted\n%s", tail(r.Console))
	}
}
