// Package live mirrors mounted, busy filesystems on real devices and proves every
// copy.
//
// It holds tests only. They need root, and the programs that scripts/setup
// installs; what is missing fails them. Each run of the mirror is compared with
// its source, which is read once more, past the page cache, while it is still
// frozen; then the filesystem's own checker and a read-only mount have their say.
package live
