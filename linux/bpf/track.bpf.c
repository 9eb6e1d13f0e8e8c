//go:build ignore

// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
//
// The programs that remember which blocks of a disk were written.
//
// Every change is marked before the driver can touch the medium, and again after it
// has, in the bitmap that is active at that moment; the second is left out where it
// is sure to be the same bitmap. Disks with a request
// queue are watched by issue_request and complete_request; disks without one by
// queue_bio, remap_bio and complete_bio, which are attached only while there is one.
// Why both are needed is told in the package comment of linux/bpf; what user space
// does with the bitmaps, in package track.
//
// The kernel's structures are described by small local views which are
// relocated (CO-RE) on the running kernel. bpf.h of the kernel headers is not
// included, so that the object is the same wherever it is built.
//
// There are two objects. The second, with PLAIN, is for kernels from 5.10 on without
// bpf_loop (5.17), or without atomic OR on values of maps (5.12): one byte a block takes
// the place of a bit, because storing a byte is atomic, and loops are bounded. The
// structures of older kernels are known to it alone; what differs there without a trace
// in the structures is found by user space, in the variables below.

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

// From include/uapi/linux/bpf.h.
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_F_MMAPABLE = 1 << 10,
	BPF_F_INNER_MAP = 1 << 12,
	BPF_ANY = 0,
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define VIEW __attribute__((preserve_access_index))

struct gendisk;

struct block_device {
	__u64 bd_nr_sectors;
	struct gendisk *bd_disk;
} VIEW;

struct gendisk {
	int major;
	int first_minor;
	struct block_device *part0;
	__u64 diskseq;
} VIEW;

struct bvec_iter {
	__u64 bi_sector;
	__u32 bi_size;
} VIEW;

typedef struct {
	int counter;
} atomic_t;

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	__u32 bi_opf;
	atomic_t __bi_remaining;
	struct bvec_iter bi_iter;
	void *bi_private;
} VIEW;

struct request_queue {
	struct gendisk *disk;
} VIEW;

struct request {
	struct request_queue *q;
	__u32 cmd_flags;
	__u32 __data_len;
	__u64 __sector;
	struct bio *bio;
	__u64 start_time_ns;
} VIEW;

struct task_struct {
	void *stack;
} VIEW;

// From drivers/md/dm-core.h and include/linux/device-mapper.h.
struct mapped_device {
	struct gendisk *disk;
} VIEW;

struct target_type {
	const char *name;
} VIEW;

struct dm_target {
	struct target_type *type;
} VIEW;

struct dm_table {
	unsigned int num_targets;
	struct dm_target *targets;
} VIEW;

// The numbers differ between kernels; only the names are used.
enum req_op {
	REQ_OP_DISCARD,
	REQ_OP_ZONE_APPEND,
	REQ_OP_ZONE_FINISH,
	REQ_OP_ZONE_RESET,
	REQ_OP_ZONE_RESET_ALL,
	REQ_OP_DRV_IN,
	REQ_OP_DRV_OUT,
};

#ifndef PLAIN
#define OP(name) bpf_core_enum_value(enum req_op, name)
#else

// Before Linux 6.0 the operations have another name, and others have been among them.
enum req_opf {
	REQ_OP_DISCARD___old,
	REQ_OP_ZONE_APPEND___old,
	REQ_OP_ZONE_FINISH___old,
	REQ_OP_ZONE_RESET___old,
	REQ_OP_ZONE_RESET_ALL___old,
	REQ_OP_SCSI_IN___old, // before 5.16
	REQ_OP_SCSI_OUT___old,
	REQ_OP_DRV_IN___old,
	REQ_OP_DRV_OUT___old,
};

// The compiler must not load a number before it is known that there is one.
#define NO_OP 0x100 // beyond REQ_OP_MASK
#define IF_OP(type, name, otherwise)                            \
	({                                                      \
		__u32 number;                                   \
		if (bpf_core_enum_value_exists(type, name)) {   \
			number = bpf_core_enum_value(type, name); \
			asm volatile("" : "+r"(number));        \
		} else {                                        \
			number = otherwise;                     \
		}                                               \
		number;                                         \
	})
#define OLD_OP(name) IF_OP(enum req_opf, name##___old, NO_OP)
#define OP(name) IF_OP(enum req_op, name, OLD_OP(name))

// Before 5.12 a bio names its disk.
struct bio___old {
	struct gendisk *bi_disk;
} VIEW;

// Before 5.11 the whole disk is a part in it.
struct hd_struct {
	__u64 nr_sects;
} VIEW;

struct gendisk___old {
	struct hd_struct part0;
} VIEW;

// Before 5.16 the size is that of its inode.
struct inode {
	__s64 i_size;
} VIEW;

struct block_device___old {
	struct inode *bd_inode;
} VIEW;

// Before 5.15 a queue does not know its disk, nor a request that nobody made of a bio.
struct kobject {
	struct kobject *parent;
} VIEW;

struct device {
	struct kobject kobj;
	__u32 devt;
} VIEW;

struct request_queue___old {
	struct kobject kobj;
} VIEW;

struct request___old {
	struct gendisk *rq_disk;
} VIEW;

// The arguments before the bio, or the request, that a tracepoint has: the queue, before 5.11.
const volatile __u32 before_bio = 0;
const volatile __u32 before_request = 0;
#endif
#define REQ_OP_MASK 0xff // include/linux/blk_types.h: REQ_OP_BITS 8

// The layout below is shared with bitmap.go and disks.go; a test compares them.

#define PAGE_SIZE 4096
#define PAGE_WORDS (PAGE_SIZE / 8)
#define SUMMARY_WORD 256 // word of the header page where the summary begins
#define SUMMARY_WORDS 256
#define SUMMARY_BYTE_PAGES 8 // pages that a byte stands for, where there are bytes for bits
#define MAX_SLOTS 256
#define TABLE_SIZE 1024 // of disks; a power of two
#define TABLE_SHIFT 22	// 32 - log2(TABLE_SIZE)
#define TABLE_PROBES 16
#define MAX_BIOS 65536
#ifndef PLAIN
#define MAX_MERGED_BIOS 4096
#else
#define MAX_MERGED_BIOS 256 // also the most ranges of a discard (NVMe)
#endif
#define MAX_TARGETS 256		// of a table, where loops are bounded
#define MAX_WHOLE_PAGES 1024	// that are marked, the same: the 4 GiB of the largest bio are 256
#define CLOCK_SLACK 1000000 // nanoseconds by which the clocks of two CPUs surely do not differ

enum header_word {
	WORD_LOST = 0,	 // flags, set here
	WORD_DOUBTS = 1, // completions that could not be attributed, counted here
};

enum lost {
	LOST_PASSTHROUGH = 1, // a command the block layer does not understand
	LOST_REPLUGGED = 2,   // another disk under the same number
	LOST_RESIZED = 4,     // the disk has another size than the bitmap
	LOST_RANGE = 8,	      // a range beyond the bitmap
	LOST_ALL = 16,	      // everything changed at once (not an error)
	LOST_MERGED = 32,     // a snapshot is merged into the disk
};

enum disk_flag {
	DISK_BIO = 1,  // completes bios, not requests
	DISK_NVME = 2, // passthrough without data may change content
	DISK_REMAP = 4, // remaps the bios that it is given, and no others
};

struct disk {
	__u64 diskseq;
	__u64 nr_sectors;
	__u32 dev; // dev_t of the whole disk, the kernel's encoding; or DEV_FREE, DEV_GONE
	__u32 slot;
	__u32 shift; // sectors to blocks
	__u32 flags;
	__u32 zone_sectors; // 0 unless zoned
	__u32 pad;
};

// What stands in place of a device in an entry of the table of disks.
enum dev {
	DEV_FREE = 0,	       // never used: a search ends here
	DEV_GONE = 0xffffffff, // no longer used, or not yet: a search goes on
};

// A bio in flight on a bio-based disk: its range in blocks, inclusive.
struct flight {
	__u64 first;
	__u64 last; // below first: nothing to mark
	__u32 slot;
	__u32 pad;
};

// A hash table made of an array, because the lookup in an array is inlined: this
// is what every write to a disk that is not tracked pays for.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TABLE_SIZE);
	__type(key, __u32);
	__type(value, struct disk);
} disks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_BIOS);
	__type(key, __u64); // address of the bio
	__type(value, struct flight);
} flights SEC(".maps");

struct bitmap {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(value_size, PAGE_SIZE);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__array(values, struct bitmap);
} active SEC(".maps");

// The time from which each issue is marked in the bitmap of the slot that is active
// now, by the clock of request.start_time_ns. User space writes SINCE_NEVER before it
// changes anything, and has begun() write the time afterwards.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
} since SEC(".maps");

#define SINCE_NEVER 0xffffffffffffffff

// Its name tells user space which of the objects is installed.
#ifdef PLAIN
#define began began_plain
#endif

// Run by user space. Programs that are meant for that (SEC("syscall")) came with 5.14; one of
// a raw tracepoint, attached to none, can be run since 5.10.
SEC("raw_tp/tidemark")
int began(__u64 *ctx)
{
	__u32 key = ctx[0];
	__u64 *when = bpf_map_lookup_elem(&since, &key);

	if (!when)
		return 1;
	*when = bpf_ktime_get_ns() + CLOCK_SLACK;
	return 0;
}

static __always_inline __u64 *header(__u32 slot)
{
	void *map = bpf_map_lookup_elem(&active, &slot);
	__u32 zero = 0;

	return map ? bpf_map_lookup_elem(map, &zero) : 0;
}

// Calls f(i, s) for i below n until it returns something else than 0; where loops are bounded,
// for no more than most.
#ifndef PLAIN
#define EACH(n, most, f, s) bpf_loop(n, f, s, 0)
#else
#define EACH(n, most, f, s)                          \
	for (__u32 i = 0; i < (most) && i < (n); i++) \
		if (f(i, s))                         \
			break;
#endif

// What is rarely done is a function of its own: inlined into every program it would
// crowd the way of a write.
#ifndef PLAIN
static __attribute__((noinline)) void lose(__u32 slot, __u64 why)
{
	__u64 *h = header(slot);

	if (h && !(h[WORD_LOST] & why))
		__sync_fetch_and_or(&h[WORD_LOST], why);
}
#else
// A byte of the word is a flag.
static __attribute__((noinline)) void lose_byte(__u32 slot, __u32 at)
{
	__u64 *h = header(slot);

	if (h)
		((volatile __u8 *)&h[WORD_LOST])[at & 7] = 1;
}

#define lose(slot, why) lose_byte(slot, __builtin_ctz(why))
#endif

static __attribute__((noinline)) void doubt(__u32 slot)
{
	__u64 *h = header(slot);

	if (h)
		__sync_fetch_and_add(&h[WORD_DOUBTS], 1);
}

#ifndef PLAIN
// Sets the bit of the page in the summary of the bitmap.
static __attribute__((noinline)) void mark_page(void *map, __u64 page)
{
	__u64 *h, bit = 1ULL << (page % 64);
	__u32 zero = 0;

	h = bpf_map_lookup_elem(map, &zero);
	if (!h)
		return;
	h += SUMMARY_WORD + (page / 64) % SUMMARY_WORDS;
	if (!(*h & bit))
		__sync_fetch_and_or(h, bit);
}

// Sets the bits of mask in word w of the bitmap, and the summary bit of the
// page. Whoever finds a bit set may leave the summary to the program that set
// it: a reader has waited for both.
static __always_inline void mark_word(__u32 slot, __u64 w, __u64 mask)
{
	void *map = bpf_map_lookup_elem(&active, &slot);
	__u64 page = w / PAGE_WORDS;
	__u32 key = 1 + page;
	__u64 *bits, old;

	if (!map)
		return;
	bits = bpf_map_lookup_elem(map, &key);
	if (!bits || page / 64 >= SUMMARY_WORDS) {
		lose(slot, LOST_RANGE);
		return;
	}
	bits += w % PAGE_WORDS;
	old = *bits;
	if ((old & mask) == mask)
		return;
	__sync_fetch_and_or(bits, mask);
	if (!old)
		mark_page(map, page);
}

struct span {
	__u64 word;
	__u32 slot;
	__u32 pad;
};

static long mark_full_word(__u64 i, struct span *s)
{
	mark_word(s->slot, s->word + i, ~0ULL);
	return 0;
}

// Marks blocks first to last, both included, which are in several words. Global, so
// that the verifier looks at it once and not once for every caller.
__attribute__((noinline)) int mark_words(__u32 slot, __u64 first, __u64 last)
{
	struct span s = { .word = first / 64 + 1, .slot = slot };
	__u64 end = last / 64;

	mark_word(slot, first / 64, ~0ULL << (first % 64));
	mark_word(slot, end, ~0ULL >> (63 - last % 64));
	if (end > s.word)
		bpf_loop(end - s.word, mark_full_word, &s, 0);
	return 0;
}

// Marks blocks first to last, both included.
static __always_inline void mark_blocks(__u32 slot, __u64 first, __u64 last)
{
	if (last < first)
		return;
	if (first / 64 == last / 64)
		mark_word(slot, first / 64, ~0ULL << (first % 64) & ~0ULL >> (63 - last % 64));
	else
		mark_words(slot, first, last);
}
#else
#define PAGE_BLOCKS PAGE_SIZE
#define ONES 0x0101010101010101ULL

// A page on which all is marked.
const volatile __u64 ones[PAGE_WORDS] = { [0 ... PAGE_WORDS - 1] = ONES };

// Sets the byte of the page in the summary of the bitmap.
static __attribute__((noinline)) void mark_page(void *map, __u64 page)
{
	volatile __u8 *h;
	__u32 zero = 0;

	h = bpf_map_lookup_elem(map, &zero);
	if (!h)
		return;
	h += SUMMARY_WORD * 8 + (page / SUMMARY_BYTE_PAGES) % (SUMMARY_WORDS * 8);
	if (!*h)
		*h = 1;
}

static __always_inline __u8 *blocks_of(void *map, __u64 page)
{
	__u32 key = 1 + page;

	return page / SUMMARY_BYTE_PAGES < SUMMARY_WORDS * 8 ? bpf_map_lookup_elem(map, &key) : 0;
}

// The bytes of the page that a block is on, or null.
static __always_inline volatile __u8 *page_of(__u32 slot, __u64 block)
{
	void *map = bpf_map_lookup_elem(&active, &slot);
	__u8 *blocks;

	if (!map)
		return 0;
	blocks = blocks_of(map, block / PAGE_BLOCKS);
	if (blocks)
		mark_page(map, block / PAGE_BLOCKS);
	else
		lose(slot, LOST_RANGE);
	return blocks;
}

// Marks blocks first to last, both included, of which there are no more than eight, on one page.
// Global, as what follows: the verifier looks at it once, and not for every caller, nor for each
// way that a loop before it may have ended.
__attribute__((noinline)) int mark_few(__u32 slot, __u64 first, __u64 last)
{
	volatile __u8 *blocks = page_of(slot, first);

	if (!blocks)
		return 0;
	for (__u32 i = 0; i < 8; i++) {
		if (first + i > last)
			return 0;
		blocks[(first + i) % PAGE_BLOCKS] = 1;
	}
	return 0;
}

// Marks blocks from first, a multiple of eight, to before end, another one, on one page.
__attribute__((noinline)) int mark_eights(__u32 slot, __u64 first, __u64 end)
{
	volatile __u8 *blocks = page_of(slot, first);

	if (!blocks)
		return 0;
	for (__u32 i = 0; i < PAGE_WORDS; i++, first += 8) {
		if (first >= end)
			return 0;
		*(volatile __u64 *)(blocks + first / 8 % PAGE_WORDS * 8) = ONES;
	}
	return 0;
}

// Marks blocks first to last, both included, which are on one page.
__attribute__((noinline)) int mark_on_page(__u32 slot, __u64 first, __u64 last)
{
	if (last - first < 8)
		return mark_few(slot, first, last);
	mark_few(slot, first, first | 7);
	mark_eights(slot, (first | 7) + 1, last & ~7ULL);
	return mark_few(slot, last & ~7ULL, last);
}

// Marks all blocks of a page. The kernel copies the ones, which are all that it writes, so
// that no mark of another CPU is undone.
__attribute__((noinline)) int mark_whole_page(__u32 slot, __u64 page)
{
	void *map = bpf_map_lookup_elem(&active, &slot);
	__u32 key = 1 + page;

	if (!map)
		return 0;
	if (!blocks_of(map, page) || bpf_map_update_elem(map, &key, (void *)ones, BPF_ANY)) {
		lose(slot, LOST_RANGE);
		return 0;
	}
	mark_page(map, page);
	return 0;
}

// Marks blocks first to last, both included, of which there are several.
__attribute__((noinline)) int mark_bytes(__u32 slot, __u64 first, __u64 last)
{
	__u64 page = first / PAGE_BLOCKS, end = last / PAGE_BLOCKS;

	if (page == end) {
		mark_on_page(slot, first, last);
		return 0;
	}
	mark_on_page(slot, first, first | (PAGE_BLOCKS - 1));
	mark_on_page(slot, end * PAGE_BLOCKS, last);
	for (__u32 i = 0; i < MAX_WHOLE_PAGES; i++) {
		if (++page >= end)
			return 0;
		mark_whole_page(slot, page);
	}
	lose(slot, LOST_ALL);
	return 0;
}

// Marks blocks first to last, both included. Whoever finds a byte set may leave the summary to
// the program that set it, as with bits.
static __always_inline void mark_blocks(__u32 slot, __u64 first, __u64 last)
{
	void *map;
	volatile __u8 *blocks;

	if (last < first)
		return;
	if (first != last) {
		mark_bytes(slot, first, last);
		return;
	}
	map = bpf_map_lookup_elem(&active, &slot);
	if (!map)
		return;
	blocks = blocks_of(map, first / PAGE_BLOCKS);
	if (!blocks) {
		lose(slot, LOST_RANGE);
		return;
	}
	blocks += first % PAGE_BLOCKS;
	if (*blocks)
		return;
	*blocks = 1;
	mark_page(map, first / PAGE_BLOCKS);
}
#endif

static __always_inline struct disk *find(__u32 dev)
{
	__u32 at = dev * 2654435761u >> TABLE_SHIFT; // Knuth's multiplicative hash

	for (int i = 0; i < TABLE_PROBES; i++) {
		__u32 key = (at + i) % TABLE_SIZE;
		struct disk *d = bpf_map_lookup_elem(&disks, &key);

		if (!d || d->dev == DEV_FREE)
			return 0;
		if (d->dev == dev)
			return d;
	}
	return 0;
}

// The tracked disk behind g, or null.
static __always_inline struct disk *lookup(struct gendisk *g)
{
	return g ? find((__u32)g->major << 20 | g->first_minor) : 0;
}

static __always_inline __u64 sectors_of(struct gendisk *g)
{
#ifdef PLAIN
	if (bpf_core_type_exists(struct hd_struct))
		return ((struct gendisk___old *)g)->part0.nr_sects;
	if (!bpf_core_field_exists(g->part0->bd_nr_sectors))
		return ((struct block_device___old *)g->part0)->bd_inode->i_size >> 9;
#endif
	return g->part0->bd_nr_sectors;
}

// The disk that a bio is for.
static __always_inline struct gendisk *disk_of(struct bio *bio)
{
#ifdef PLAIN
	if (!bpf_core_field_exists(bio->bi_bdev))
		return ((struct bio___old *)bio)->bi_disk;
#endif
	return bio->bi_bdev ? bio->bi_bdev->bd_disk : 0;
}

// Notes when the disk behind g is not the one we were told about. Its blocks are
// marked all the same. Kernels without diskseq have user space look (block.Identity).
static __always_inline void inspect(struct disk *d, struct gendisk *g)
{
	if (bpf_core_field_exists(g->diskseq) && g->diskseq != d->diskseq)
		lose(d->slot, LOST_REPLUGGED);
	if (sectors_of(g) != d->nr_sectors)
		lose(d->slot, LOST_RESIZED);
}

// The blocks that sectors lie in. Sets last below first when there are none.
static __always_inline void blocks_at(struct disk *d, __u64 sector, __u64 sectors, struct flight *f)
{
	__u64 end = sector + sectors;

	f->slot = d->slot;
	f->first = 1;
	f->last = 0;
	if (!sectors)
		return;
	if (end < sector || end > d->nr_sectors) {
		lose(d->slot, LOST_RANGE);
		return;
	}
	f->first = sector >> (d->shift & 63);
	f->last = (end - 1) >> (d->shift & 63);
}

// The blocks an operation changes, as blocks_at.
static __always_inline void range_of(struct disk *d, __u32 op, __u64 sector, __u64 sectors, struct flight *f)
{
	if (op == OP(REQ_OP_ZONE_RESET_ALL)) {
		lose(d->slot, LOST_ALL);
		sectors = 0;
	}
	if (op == OP(REQ_OP_ZONE_APPEND) || op == OP(REQ_OP_ZONE_RESET) || op == OP(REQ_OP_ZONE_FINISH)) {
		if (d->zone_sectors) {
			sector -= sector % d->zone_sectors;
			sectors = d->zone_sectors;
			if (sector < d->nr_sectors && sectors > d->nr_sectors - sector)
				sectors = d->nr_sectors - sector; // a last zone may be short
		} else {
			lose(d->slot, LOST_RANGE);
			sectors = 0;
		}
	}
	blocks_at(d, sector, sectors, f);
}

// Operations that change content have odd numbers (op_is_write); before 6.0 one has not.
static __always_inline int changes(__u32 op)
{
#ifdef PLAIN
	if (op == OP(REQ_OP_ZONE_FINISH))
		return 1;
#endif
	return op & 1;
}

// An argument of a tracepoint, which may follow another one. Of two loads the compiler would
// make one from an address that varies, which the verifier refuses.
#ifdef PLAIN
#define ARGUMENT(at)                                                                        \
	({                                                                                  \
		__u64 value;                                                                \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value) : "r"(ctx), "i"((at) * 8)); \
		value;                                                                      \
	})
#define AFTER(n, at) (n ? ARGUMENT((at) + 1) : ARGUMENT(at))
#else
#define AFTER(n, at) ctx[at]
#endif

// Where the kernel preempts programs (Linux 7.0 on), it skips a program for whatever comes to it
// on a CPU on which a task was preempted in it. So those that mark before the driver acts are
// loaded five times there, and attached in this order: name_first, _again, _third, _fourth, _last. The
// first of them that is not skipped does the work, and leaves word of it in its task to the
// others. What follows from the counts is told in docs/design/0005.
#ifndef PLAIN
enum kind {
	QUEUE,
	REMAP,
	ISSUE,
	KINDS,
};

#define NOTE_BUCKETS 256 // 1 << (64 - NOTE_SHIFT)
#define NOTE_SHIFT 56
#define BUCKET_NOTES 4

// What a task is about. Only the task that a note belongs to changes it, until it is released:
// hence volatile.
struct note {
	volatile __u64 whose; // the address of the task, and the kind
	volatile __u64 about; // the bio or the request
	volatile __u64 where; // what else the event is known by
};

// The kernel's own storage of tasks (BPF_MAP_TYPE_TASK_STORAGE) often fails to get memory here.
struct bucket {
	struct note notes[BUCKET_NOTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NOTE_BUCKETS);
	__type(key, __u32);
	__type(value, struct bucket);
} notes SEC(".maps");

// The events that surely were skipped by the first program of their kind and not by another one.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, __u64);
} caught SEC(".maps");

static __attribute__((noinline)) void count_caught(__u32 kind, __u64 n)
{
	__u64 *counted = bpf_map_lookup_elem(&caught, &kind);

	if (counted)
		__sync_fetch_and_add(counted, n);
}

#define STACK_SIZE 16384 // of a task, at least (THREAD_SIZE of 64-bit processors)

// The task, which owns notes, that the program runs for, or 0 in an interrupt: the arguments of a task are
// on its stack, and an interrupt has a stack of its own, but for one that found the task in user
// space, and that does no harm.
static __always_inline __u64 owner(__u64 *ctx)
{
	__u64 stack = (__u64)bpf_get_current_task_btf()->stack, end = stack + STACK_SIZE;

	asm volatile("" : "+r"(end)); // two comparisons: the verifier knows no difference of these
	return (__u64)ctx >= stack && (__u64)ctx < end ? bpf_get_current_task() : 0;
}

static __always_inline struct bucket *bucket_of(__u64 task)
{
	__u32 key = task * 0x9e3779b97f4a7c15ULL >> NOTE_SHIFT; // Knuth's multiplicative hash

	return bpf_map_lookup_elem(&notes, &key);
}

static __always_inline struct note *note_of(struct bucket *b, __u64 whose)
{
	for (int i = 0; i < BUCKET_NOTES; i++)
		if (b->notes[i].whose == whose)
			return &b->notes[i];
	return 0;
}

// What an event is known by beside the address. A task soon gets the address of its last bio again,
// and word that nobody took back (the last copy was skipped) would pass for word of the next event.
// Nothing of this changes while the copies are called one after the other.
static __always_inline __u64 where(__u64 *ctx, __u32 kind)
{
	struct bio *bio = (struct bio *)ctx[0];
	struct request *rq = (struct request *)ctx[0];

	if (kind == ISSUE)
		return rq->__sector ^ rq->start_time_ns << 16;
	return bio->bi_iter.bi_sector ^ (__u64)bio->bi_iter.bi_size << 32;
}

// Leaves word that an event was seen: in the note n, or in another one if that is null.
static __always_inline void leave(struct bucket *b, struct note *n, __u64 *ctx, __u64 whose, __u32 kind)
{
	for (int i = 0; i < BUCKET_NOTES && !n; i++)
		if (!b->notes[i].whose && !__sync_val_compare_and_swap(&b->notes[i].whose, 0, whose))
			n = &b->notes[i];
	if (!n) {
		count_caught(kind, -1); // the next program counts what was not skipped
		return;
	}
	n->about = ctx[0];
	n->where = where(ctx, kind);
}

// What the first program of a kind does.
static __always_inline void begin(__u64 *ctx, __u32 kind)
{
	__u64 task = owner(ctx);
	struct bucket *b = task ? bucket_of(task) : 0;

	if (b)
		leave(b, note_of(b, task + kind), ctx, task + kind, kind);
}

// What the others do: whether an event was seen already.
static __always_inline int seen(__u64 *ctx, __u32 kind, int last)
{
	__u64 task = owner(ctx);
	struct bucket *b = task ? bucket_of(task) : 0;
	__u64 at = where(ctx, kind);
	struct note *n;
	int is;

	if (!b)
		return 0; // marked again, which changes nothing
	n = note_of(b, task + kind);
	asm volatile("" : "+r"(at)); // not read by the number that compares equal to the address: the verifier
	is = n && n->about == ctx[0] && n->where == at;
	if (!is)
		count_caught(kind, 1);
	if (last && n)
		n->whose = 0; // what comes next may have the same address
	if (!last && !is)
		leave(b, n, ctx, task + kind, kind);
	return is;
}

#define COPY(tracepoint, name, which, before) \
	SEC("tp_btf/" tracepoint)             \
	int name##which(__u64 *ctx)           \
	{                                     \
		before;                       \
		return name##_called(ctx);    \
	}
#define COPIES(tracepoint, name, kind)                                             \
	static __attribute__((noinline)) int name##_called(__u64 *ctx)             \
	{                                                                          \
		return name##_(ctx);                                               \
	}                                                                          \
	COPY(tracepoint, name, _first, begin(ctx, kind))                           \
	COPY(tracepoint, name, _again, if (seen(ctx, kind, 0)) return 0)           \
	COPY(tracepoint, name, _third, if (seen(ctx, kind, 0)) return 0)           \
	COPY(tracepoint, name, _fourth, if (seen(ctx, kind, 0)) return 0)          \
	COPY(tracepoint, name, _last, if (seen(ctx, kind, 1)) return 0)
#else
#define COPIES(tracepoint, name, kind)
#endif

#define PROGRAM(tracepoint, name, kind)   \
	SEC("tp_btf/" tracepoint)         \
	int name(__u64 *ctx)              \
	{                                 \
		return name##_(ctx);      \
	}                                 \
	COPIES(tracepoint, name, kind)

static __always_inline int queue_bio_(__u64 *ctx)
{
	struct bio *bio = (struct bio *)AFTER(before_bio, 0);
	struct gendisk *g;
	__u32 op = bio->bi_opf & REQ_OP_MASK;
	__u64 addr = (__u64)bio;
	struct flight f = {};
	struct disk *d;

	if (!changes(op))
		return 0;
	g = disk_of(bio);
	d = lookup(g);
	if (!d || !(d->flags & DISK_BIO))
		return 0;
	inspect(d, g);
	range_of(d, op, bio->bi_iter.bi_sector, bio->bi_iter.bi_size >> 9, &f);
	mark_blocks(f.slot, f.first, f.last);
	if (bpf_map_update_elem(&flights, &addr, &f, BPF_ANY))
		doubt(f.slot);
	return 0;
}
PROGRAM("block_bio_queue", queue_bio, QUEUE)

// A bio that was queued on a device above and is sent on as it is (md raid0, linear)
// is not announced again by block_bio_queue. What a driver of device-mapper or md makes
// of it is, with where it was on its own disk: for one that is announced as well this
// marks nothing new. RAID 4, 5 and 6 also announce what they write to members of
// themselves (parity, recovery) as if it came from somewhere on the array; their disks
// are left out.
static __always_inline int remap_bio_(__u64 *ctx)
{
	struct bio *bio = (struct bio *)AFTER(before_bio, 0);
	__u64 sector = AFTER(before_bio, 2), sectors = bio->bi_iter.bi_size >> 9;
	__u32 op = bio->bi_opf & REQ_OP_MASK;
	struct flight f = {};
	struct disk *d;

	if (!changes(op))
		return 0;
	d = find(AFTER(before_bio, 1));
	if (!d || !(d->flags & DISK_REMAP) || sector >= d->nr_sectors)
		return 0;
	if (sectors > d->nr_sectors - sector)
		sectors = d->nr_sectors - sector;
	range_of(d, op, sector, sectors, &f);
	mark_blocks(f.slot, f.first, f.last);
	return 0;
}
PROGRAM("block_bio_remap", remap_bio, REMAP)

// A bio whose start nobody saw ends on a tracked disk: it was queued before
// tracking began, or its record did not fit. A fragment split off a bio that
// is on record is not meant: that bio ends after it. Fragments point to what
// they were split from; a few levels are followed.
static __always_inline __u64 parent_of(__u64 bio)
{
	__u64 parent = 0;

	if (bio)
		bpf_core_read(&parent, sizeof(parent), &((struct bio *)bio)->bi_private);
	return parent;
}

// The bio on record that this one is, or was split off from; 0 if there is none.
static __always_inline __u64 on_record(__u64 bio)
{
	if (bpf_map_lookup_elem(&flights, &bio))
		return bio;
	bio = parent_of(bio);
	if (bpf_map_lookup_elem(&flights, &bio))
		return bio;
	bio = parent_of(bio);
	if (bpf_map_lookup_elem(&flights, &bio))
		return bio;
	return 0;
}

SEC("tp_btf/block_bio_complete")
int complete_bio(__u64 *ctx)
{
	struct bio *bio = (struct bio *)ctx[1];
	__u64 addr = (__u64)bio;
	struct flight *f;
	struct disk *d;

	if (!changes(bio->bi_opf & REQ_OP_MASK))
		return 0;
	d = lookup(disk_of(bio));
	if (d && !(d->flags & DISK_BIO))
		d = 0;
	// By address first: a driver may have sent the bio on to another disk, which
	// then has seen the start of nothing that ends.
	f = bpf_map_lookup_elem(&flights, &addr);
	if (f) {
		mark_blocks(f->slot, f->first, f->last);
		if (d && d->slot != f->slot)
			doubt(d->slot);
		bpf_map_delete_elem(&flights, &addr);
		return 0;
	}
	if (d && !on_record(addr))
		doubt(d->slot);
	return 0;
}

// The targets of a table of device-mapper.
struct targets {
	__u64 at;
	__u32 slot;
	__u32 pad;
};

#define SNAPSHOT 0x746f687370616e73ULL // "snapshot", and
#define MERGE 0x656772656d2dULL // "-merge", as little-endian numbers

static long judge_target(__u64 i, struct targets *t)
{
	struct dm_target *target = (void *)(t->at + i * bpf_core_type_size(struct dm_target));
	__u64 name[2] = {};
	const char *text = 0;
	struct target_type *type = 0;

	if (!bpf_core_read(&type, sizeof(type), &target->type) && !bpf_core_read(&text, sizeof(text), &type->name) &&
	    bpf_probe_read_kernel_str(name, sizeof(name), text) >= 0 && (name[0] != SNAPSHOT || name[1] != MERGE))
		return 0;
	lose(t->slot, LOST_MERGED);
	return 1;
}

// A disk of device-mapper gets another table, and is suspended. With the target snapshot-merge
// it has the content of a snapshot from now on, and nobody writes it. User space sees only a table
// that is still there.
SEC("fentry/dm_swap_table")
int swap_table(__u64 *ctx)
{
	struct mapped_device *md = (struct mapped_device *)ctx[0];
	struct dm_table *table = (struct dm_table *)ctx[1];
	struct disk *d = lookup(md->disk);
	struct targets t = {};

	if (!d)
		return 0;
	t.slot = d->slot;
	if (bpf_core_read(&t.at, sizeof(t.at), &table->targets)) // as a number, to count from
		lose(d->slot, LOST_MERGED);
	EACH(table->num_targets, MAX_TARGETS, judge_target, &t);
#ifdef PLAIN
	if (table->num_targets > MAX_TARGETS)
		lose(d->slot, LOST_MERGED);
#endif
	return 0;
}

// Discards of unconnected ranges are merged into one request (see
// blk_discard_mergable in block/blk-merge.c); only its bios know the ranges.
struct walk {
	__u64 bio;
	struct disk *d;
};

// Marks what a bio changes, and returns the next one, or 0. Global, as what else is done in loops
// that are bounded: the verifier looks at it once, and not at every turn.
__attribute__((noinline)) __u64 mark_bio(__u32 slot, __u32 shift, __u64 nr_sectors, __u64 addr)
{
	struct disk d = { .slot = slot, .shift = shift, .nr_sectors = nr_sectors };
	struct bio *bio = (struct bio *)addr;
	struct flight f = {};
	__u64 sector = 0, next = 0;
	__u32 size = 0;

	if (bpf_core_read(&sector, sizeof(sector), &bio->bi_iter.bi_sector) ||
	    bpf_core_read(&size, sizeof(size), &bio->bi_iter.bi_size) ||
	    bpf_core_read(&next, sizeof(next), &bio->bi_next)) {
		doubt(slot);
		return 0;
	}
	blocks_at(&d, sector, size >> 9, &f);
	mark_blocks(f.slot, f.first, f.last);
	return next;
}

static long mark_next_bio(__u64 i, struct walk *w)
{
	if (!w->bio)
		return 1;
	w->bio = mark_bio(w->d->slot, w->d->shift, w->d->nr_sectors, w->bio);
	return 0;
}

static __always_inline void mark_discard(struct disk *d, struct request *rq)
{
	struct walk w = { .d = d };

	if (bpf_core_read(&w.bio, sizeof(w.bio), &rq->bio)) // as a number, which global functions take
		doubt(d->slot);
	EACH(MAX_MERGED_BIOS, MAX_MERGED_BIOS, mark_next_bio, &w);
	if (w.bio)
		lose(d->slot, LOST_ALL); // more than can be walked: all counts as changed
}

static __always_inline int passes_out(__u32 op)
{
#ifdef PLAIN
	if (op == OLD_OP(REQ_OP_SCSI_OUT))
		return 1;
#endif
	return op == OP(REQ_OP_DRV_OUT);
}

static __always_inline int passes_through(__u32 op)
{
#ifdef PLAIN
	if (op == OLD_OP(REQ_OP_SCSI_IN))
		return 1;
#endif
	return passes_out(op) || op == OP(REQ_OP_DRV_IN);
}

// The disk that a request is for; null of one that passes through, where only the number can
// be told.
static __always_inline struct gendisk *disk_of_request(struct request *rq, __u32 op)
{
#ifdef PLAIN
	if (!bpf_core_field_exists(rq->q->disk))
		return passes_through(op) ? 0 : ((struct request___old *)rq)->rq_disk;
#endif
	return rq->q->disk;
}

// Marks what a request changes, of which the first bytes are meant.
static __always_inline void mark_request(struct disk *d, struct request *rq, __u32 bytes)
{
	__u32 op = rq->cmd_flags & REQ_OP_MASK;
	struct gendisk *g = disk_of_request(rq, op);
	struct flight f = {};

	if (g)
		inspect(d, g);
	if (passes_through(op)) {
		// SG_IO, NVMe passthrough: what it changes is unknown. A command that
		// writes has a direction, but on NVMe some that change content carry
		// no data and look like reads.
		if (passes_out(op) || ((d->flags & DISK_NVME) && !rq->__data_len))
			lose(d->slot, LOST_PASSTHROUGH);
		return;
	}
	if (op == OP(REQ_OP_DISCARD)) {
		mark_discard(d, rq);
		return;
	}
	range_of(d, op, rq->__sector, bytes >> 9, &f);
	mark_blocks(f.slot, f.first, f.last);
}

// The tracked disk that a request may change, or null.
static __always_inline struct disk *target(struct request *rq)
{
	__u32 op = rq->cmd_flags & REQ_OP_MASK;

	if (!changes(op) && !passes_through(op))
		return 0;
#ifdef PLAIN
	// rq_disk of what passes through may be that of the device that was asked (sg), or none. The
	// queue is a folder in sysfs, in that of its disk (blk_register_queue in block/blk-sysfs.c).
	if (!bpf_core_field_exists(rq->q->disk) && passes_through(op)) {
		struct kobject *of = ((struct request_queue___old *)rq->q)->kobj.parent;
		__u32 dev = 0;

		bpf_core_read(&dev, sizeof(dev), &((struct device *)((void *)of - bpf_core_field_offset(struct device, kobj)))->devt);
		return dev ? find(dev) : 0;
	}
#endif
	return lookup(disk_of_request(rq, op));
}

// In blk_mq_start_request, which every driver calls before it acts on the request.
static __always_inline int issue_request_(__u64 *ctx)
{
	struct request *rq = (struct request *)AFTER(before_request, 0);
	struct disk *d = target(rq);

	if (d)
		mark_request(d, rq, rq->__data_len);
	return 0;
}
PROGRAM("block_rq_issue", issue_request, ISSUE)

// A request, or bytes of it, are completed; before the request moves on. One that was
// started since the active bitmap is active is marked there already: the kernel writes
// the time before it issues the request, or 0 where it keeps none.
SEC("tp_btf/block_rq_complete")
int complete_request(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct disk *d = target(rq);
	__u64 *when;
	__u32 slot;

	if (!d)
		return 0;
	slot = d->slot;
	when = bpf_map_lookup_elem(&since, &slot);
	if (when && rq->start_time_ns > *when)
		return 0;
	mark_request(d, rq, ctx[2]);
	return 0;
}

__attribute__((noinline)) int doubt_disk(__u32 key)
{
	struct disk *d = bpf_map_lookup_elem(&disks, &key);

	if (d && d->dev != DEV_FREE && d->dev != DEV_GONE && (d->flags & DISK_BIO))
		doubt(d->slot);
	return 0;
}

static long doubt_entry(__u64 i, void *unused)
{
	return doubt_disk(i);
}

static __always_inline void doubt_bio_disks(void)
{
	EACH(TABLE_SIZE, TABLE_SIZE, doubt_entry, 0);
}

// Some drivers without a queue (NVMe multipath, md raid0) send a bio itself on to
// a disk with one. Its completion is then announced as that of a request, and
// block_bio_complete is not (blk_update_request clears BIO_TRACE_COMPLETION). So
// while a bio-based disk is tracked, the bios of every completed request are
// looked up. A bio split on the way ends in several requests in any order; each
// marks all of it, and the last one forgets it.
struct settle {
	__u64 bio;
	__u64 left; // bytes completed
};

__attribute__((noinline)) int settle_bio(__u64 bio)
{
	__u64 root = on_record(bio);
	struct flight *f = root ? bpf_map_lookup_elem(&flights, &root) : 0;
	int remaining = 0;

	if (!f)
		return 0;
	mark_blocks(f->slot, f->first, f->last);
	bpf_core_read(&remaining, sizeof(remaining), &((struct bio *)root)->__bi_remaining.counter);
	if (remaining <= 1)
		bpf_map_delete_elem(&flights, &root);
	return 0;
}

static long settle_next_bio(__u64 i, struct settle *s)
{
	struct bio *bio = (struct bio *)s->bio;
	__u64 next = 0;
	__u32 size = 0;

	if (!bio || bpf_core_read(&size, sizeof(size), &bio->bi_iter.bi_size) || size > s->left ||
	    bpf_core_read(&next, sizeof(next), &bio->bi_next)) {
		s->bio = 0;
		return 1;
	}
	s->left -= size;
	settle_bio(s->bio);
	s->bio = next;
	return 0;
}

SEC("tp_btf/block_rq_complete")
int complete_remapped(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	struct settle s = { .left = (__u32)ctx[2] };

	if (!changes(rq->cmd_flags & REQ_OP_MASK))
		return 0;
	if (bpf_core_read(&s.bio, sizeof(s.bio), &rq->bio)) {
		doubt_bio_disks();
		return 0;
	}
	EACH(MAX_MERGED_BIOS, MAX_MERGED_BIOS, settle_next_bio, &s);
	if (s.bio)
		doubt_bio_disks();
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
