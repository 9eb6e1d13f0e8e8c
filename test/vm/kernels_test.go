package vm

import "flag"

var allKernels = flag.Bool("all-kernels", false, "run everything on every kernel of the rig; make test-kernels does")

// oldestAndNewest are the kernels for the rig itself, for mirrors and tracking under load, for disks
// that fail and machines that lose their power.
func oldestAndNewest() []Kernel {
	if *allKernels {
		return Kernels()
	}
	return []Kernel{Linux510, Newest}
}

// forMapper are the kernels for what depends on device-mapper.
func forMapper() []Kernel {
	if *allKernels {
		return Kernels()
	}
	return []Kernel{Linux61, Linux612}
}

// oneOf is the last of some kernels, or of some pairs of a kernel and something else, for what takes
// several boots and hardly depends on the kernel.
func oneOf[T any](kernels []T) []T {
	if *allKernels {
		return kernels
	}
	return kernels[len(kernels)-1:]
}

// old reports whether a kernel is of the older half. Of two kernels that share the cases of a
// test out, one is.
func (k Kernel) old() bool { return k == Linux510 || k == Linux61 }

// skipped is the pattern of the cases that a kernel leaves to the other one: those of old or of
// the newer half. With all kernels, nothing is left out.
func (k Kernel) skipped(old, newer string) string {
	switch {
	case *allKernels:
		return ""
	case k.old():
		return old
	}
	return newer
}
