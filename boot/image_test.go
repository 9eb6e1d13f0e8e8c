package boot

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tidemark/test/vm/initramfs"
)

// archive is a cpio archive of the files.
func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := initramfs.NewWriter(&b)
	for name, content := range files {
		if err := w.File(name, 0o755, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// contents is what the generator puts in an image of the installed system.
func contents(t *testing.T, dir string, g Generator) map[string]string {
	t.Helper()
	files := map[string]string{
		"usr/lib/modules/1/kernel/drivers/md/dm-era.ko.xz": "module",
		"usr/lib/modules/1/modules.builtin":                "kernel/fs/ext4/ext4.ko\n",
		"usr/bin/tidemark":                                 "program",
		"sbin/init":                                        "init",
	}
	for path, content := range tree(t, dir) {
		name := "/" + strings.TrimPrefix(path, dir+"/")
		in := imagePath(name)
		switch {
		case name == TabPath:
			files["etc/tidemark/era.conf"] = content
		case name == udevRules:
			files["usr/lib/udev/rules.d/61-tidemark-era.rules"] = content
		case in != "" && strings.HasPrefix(in, "scripts/") == (g == InitramfsTools):
			if g == Dracut {
				in = "usr/lib/" + in
			}
			files[in] = content
		}
	}
	return files
}

func TestAnImageIsCurrentStaleOrWithout(t *testing.T) {
	for _, g := range []Generator{InitramfsTools, Dracut} {
		t.Run(string(g), func(t *testing.T) {
			s, dir := newSystem(t)
			put(t, dir, "usr/bin/tidemark", "program", 0o755)
			if err := install(t, s, false, entry("root")); err != nil {
				t.Fatal(err)
			}
			files := contents(t, dir, g)
			script := "scripts/local-top/tidemark-era"
			if g == Dracut {
				script = "usr/lib/dracut/hooks/initqueue/settled/50-open.sh"
			}
			for _, c := range []struct {
				what, file, content string
				want                ImageState
			}{
				{"as installed", "", "", ImageCurrent},
				{"other program", "usr/bin/tidemark", "older", ImageStale},
				{"other script", script, "older", ImageStale},
				{"other rules", "usr/lib/udev/rules.d/61-tidemark-era.rules", "older", ImageStale},
				{"other table", "etc/tidemark/era.conf", "root PARTUUID=1 PARTUUID=2\n", ImageStale},
				{"built in", "usr/lib/modules/1/modules.builtin", "kernel/drivers/md/dm-era.ko\n", ImageCurrent},
				{"no module", "usr/lib/modules/1/kernel/drivers/md/dm-era.ko.xz", "-", ImageWithout},
				{"no table", "etc/tidemark/era.conf", "-", ImageWithout},
			} {
				changed := map[string]string{}
				for name, content := range files {
					if name == c.file {
						content = c.content
					}
					if content != "-" {
						changed[name] = content
					}
				}
				early := append(archive(t, map[string]string{"kernel/x86/microcode": "code"}), make([]byte, 700)...)
				for kind, image := range map[string][]byte{
					"gzip": gzipped(t, archive(t, changed)), "zstd": zstandard(t, archive(t, changed)), "plain": archive(t, changed),
				} {
					put(t, dir, "boot/initrd.img-1", string(early)+string(image), 0o644)
					st, err := s.Status()
					if err != nil || len(st.Images) != 1 || st.Images[0].State != c.want {
						t.Errorf("%s, %s: %+v, %v; want %s", c.what, kind, st.Images, err, c.want)
					}
				}
			}
		})
	}
}

func TestATruncatedImageIsRefused(t *testing.T) {
	whole := gzipped(t, archive(t, map[string]string{"usr/bin/tidemark": strings.Repeat("program", 1000)}))
	path := filepath.Join(t.TempDir(), "initrd")
	for n := range len(whole) - 8 { // the last 8 bytes are gzip's own, behind the archive
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readImage(path); !errors.Is(err, errNotImage) {
			t.Fatalf("cut at %d of %d: %v", n, len(whole), err)
		}
	}
}

func FuzzImage(f *testing.F) {
	f.Add(archive(f, map[string]string{"etc/tidemark/era.conf": "root PARTUUID=1 PARTUUID=2\n"}))
	f.Add(append(make([]byte, 512), gzipped(f, archive(f, map[string]string{"usr/bin/tidemark": "x"}))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.ContainsAny(data[:min(len(data), 1)], "\xfd\x5dB\x02\x89") {
			return // other programs unpack these
		}
		img := image{sums: map[string]string{}}
		err := img.read(bufio.NewReader(bytes.NewReader(data)))
		if err != nil && !errors.Is(err, errNotImage) && !errors.Is(err, io.EOF) {
			t.Errorf("%v is of no class", err)
		}
	})
}
