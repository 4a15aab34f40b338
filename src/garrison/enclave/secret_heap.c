/*
 * A heap in secret memory, to be preloaded: malloc and its family over one arena that memfd_secret(2) gives.
 *
 * The kernel takes the arena's pages out of its own map of memory: no other process can read them, not even root by
 * /proc/PID/mem, process_vm_readv or a core file, and they are never swapped out. Not stopped: root that makes the
 * process itself read them (a debugger that injects code), and what runs below the kernel.
 *
 * The allocator is a two-level segregated fit (Masmano, Ripoll, Crespo, Real: "TLSF: a new dynamic memory allocator for
 * real-time systems", ECRTS 2004) under one lock. The arena never grows: when it is full, the process says so and aborts,
 * because memory from elsewhere would not be secret.
 *
 * GARRISON_SECRET_HEAP_BYTES: size of the arena, default 1 GiB. Pages are taken when they are first used.
 * GARRISON_SECRET_HEAP_OPEN=1: the same allocator over ordinary memory; the control arm of the tests, and nothing else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define EXPORT __attribute__((visibility("default")))
#define ALIGN ((size_t)16)
#define DEFAULT_BYTES ((size_t)1 << 30)
#define LEAST_BYTES ((size_t)1 << 20)

/* A block: its header, then what the caller gets. `size` counts the caller's bytes, a multiple of 16. */
typedef struct block {
    struct block *before; /* the block that lies before this one in memory, NULL for the first */
    size_t size;          /* lowest bit: free */
    struct block *next;   /* only while it is free */
    struct block *previous;
} block;

#define HEADER offsetof(block, next)
#define LEAST (sizeof(block) - HEADER)
#define FREE ((size_t)1)
#define SPLITS 32 /* second level: steps within one power of two */
#define SPLIT_BITS 5
#define SMALL ((size_t)512) /* below: one class for each multiple of 16 */
#define SMALL_BITS 9
#define LEVELS 48

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *arena, *arena_end;
static block *bins[LEVELS][SPLITS];
static uint64_t level_map;
static uint32_t split_map[LEVELS];

static void __attribute__((noreturn)) fail(const char *why) {
    static const char name[] = "garrison secret heap: ";
    ssize_t ignored = write(2, name, sizeof name - 1);
    ignored = write(2, why, strlen(why));
    ignored = write(2, "\n", 1);
    (void)ignored;
    abort();
}

static size_t size_of(const block *b) { return b->size & ~FREE; }
static block *block_of(void *memory) { return (block *)((char *)memory - HEADER); }
static void *memory_of(block *b) { return (char *)b + HEADER; }
static block *after(block *b) { return (block *)((char *)memory_of(b) + size_of(b)); }
static int is_ours(const void *memory) { return (const char *)memory >= arena && (const char *)memory < arena_end; }

static void class_of(size_t size, int *level, int *split) {
    if (size < SMALL) {
        *level = 0;
        *split = (int)(size / ALIGN);
        return;
    }
    int top = 63 - __builtin_clzll(size);
    *level = top - SMALL_BITS + 1;
    *split = (int)((size >> (top - SPLIT_BITS)) & (SPLITS - 1));
}

static void put(block *b) {
    int level, split;
    class_of(size_of(b), &level, &split);
    b->size |= FREE;
    b->previous = NULL;
    b->next = bins[level][split];
    if (b->next)
        b->next->previous = b;
    bins[level][split] = b;
    level_map |= (uint64_t)1 << level;
    split_map[level] |= (uint32_t)1 << split;
}

static void take(block *b) {
    int level, split;
    class_of(size_of(b), &level, &split);
    if (b->next)
        b->next->previous = b->previous;
    if (b->previous)
        b->previous->next = b->next;
    else if (!(bins[level][split] = b->next) && !(split_map[level] &= ~((uint32_t)1 << split)))
        level_map &= ~((uint64_t)1 << level);
    b->size &= ~FREE;
}

/* A free block of at least `size`: from the first class of which every block is large enough. */
static block *find(size_t size) {
    size_t rounded = size;
    if (size >= SMALL)
        rounded += ((size_t)1 << (63 - __builtin_clzll(size) - SPLIT_BITS)) - 1;
    int level, split;
    class_of(rounded, &level, &split);
    if (level >= LEVELS)
        return NULL;
    uint32_t splits = split_map[level] & (~(uint32_t)0 << split);
    if (!splits) {
        uint64_t levels = level + 1 < 64 ? level_map & (~(uint64_t)0 << (level + 1)) : 0;
        if (!levels)
            return NULL;
        level = __builtin_ctzll(levels);
        splits = split_map[level];
    }
    return bins[level][__builtin_ctz(splits)];
}

/* Give back the end of a block that is in use, if it is worth a block. */
static void trim(block *b, size_t size) {
    size_t rest = size_of(b) - size;
    if (rest < HEADER + LEAST)
        return;
    b->size = size;
    block *tail = after(b);
    tail->before = b;
    tail->size = rest - HEADER;
    block *next = after(tail);
    if (next->size & FREE) {
        take(next);
        tail->size += HEADER + size_of(next);
        next = after(tail);
    }
    next->before = tail;
    put(tail);
}

static void release(block *b) {
    block *next = after(b);
    if (next->size & FREE) {
        take(next);
        b->size += HEADER + size_of(next);
    }
    if (b->before && (b->before->size & FREE)) {
        block *first = b->before;
        take(first);
        first->size += HEADER + size_of(b);
        b = first;
    }
    after(b)->before = b;
    put(b);
}

static size_t wanted_bytes(void) {
    const char *text = getenv("GARRISON_SECRET_HEAP_BYTES");
    unsigned long long bytes = text ? strtoull(text, NULL, 10) : DEFAULT_BYTES;
    if (bytes < LEAST_BYTES || bytes > (unsigned long long)1 << 46)
        fail("GARRISON_SECRET_HEAP_BYTES must lie between 1 MiB and 64 TiB");
    return (size_t)bytes & ~(size_t)4095;
}

static void begin(void) {
    size_t bytes = wanted_bytes();
    const char *open = getenv("GARRISON_SECRET_HEAP_OPEN");
    void *found;
    if (open && open[0] == '1') {
        found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    } else {
        int fd = (int)syscall(SYS_memfd_secret, 0);
        if (fd < 0)
            fail("the kernel gives no secret memory (memfd_secret): Linux 5.14 or newer, booted with secretmem.enable=1");
        if (ftruncate(fd, (off_t)bytes))
            fail("the secret memory cannot be given its size");
        found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd); /* who has no descriptor can map it no second time */
    }
    if (found == MAP_FAILED)
        fail("the secret memory cannot be mapped: start as root, or raise the limit of locked memory (ulimit -l)");
    arena = found;
    arena_end = arena + bytes;
    block *first = (block *)arena;
    first->before = NULL;
    first->size = bytes - 2 * HEADER;
    block *last = after(first); /* never free, so that nothing is joined beyond the end */
    last->before = first;
    last->size = 0;
    put(first);
}

static size_t rounded(size_t size) {
    return size < LEAST ? LEAST : (size + ALIGN - 1) & ~(ALIGN - 1);
}

static void *allocate(size_t size, size_t alignment) {
    if (size > PTRDIFF_MAX - 4096 || alignment > ((size_t)1 << 30)) {
        errno = ENOMEM;
        return NULL;
    }
    size = rounded(size);
    size_t wanted = alignment > ALIGN ? size + alignment + HEADER + LEAST : size;
    pthread_mutex_lock(&lock);
    if (!arena)
        begin();
    block *b = find(wanted);
    if (!b)
        fail("the arena is full; give it more (server.secret_heap_mib), or serve a smaller model");
    take(b);
    if (alignment > ALIGN) {
        uintptr_t at = (uintptr_t)memory_of(b), aligned = (at + alignment - 1) & ~(uintptr_t)(alignment - 1);
        if (aligned != at && aligned - at < HEADER + LEAST)
            aligned += (HEADER + LEAST + alignment - 1) & ~(uintptr_t)(alignment - 1);
        if (aligned != at) { /* the gap before becomes a block that is given back */
            block *moved = block_of((void *)aligned);
            moved->size = size_of(b) - (size_t)(aligned - at);
            moved->before = b;
            b->size = (size_t)(aligned - at) - HEADER;
            after(moved)->before = moved;
            release(b);
            b = moved;
        }
    }
    trim(b, size);
    pthread_mutex_unlock(&lock);
    return memory_of(b);
}

EXPORT void *malloc(size_t size) { return allocate(size, ALIGN); }

EXPORT void free(void *memory) {
    if (!memory || !is_ours(memory)) /* the loader's own first blocks are not ours */
        return;
    pthread_mutex_lock(&lock);
    block *b = block_of(memory);
    if (b->size & FREE)
        fail("memory was freed twice");
    release(b);
    pthread_mutex_unlock(&lock);
}

EXPORT void *calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    void *memory = allocate(bytes, ALIGN);
    if (memory)
        memset(memory, 0, bytes);
    return memory;
}

EXPORT size_t malloc_usable_size(void *memory) {
    return memory && is_ours(memory) ? size_of(block_of(memory)) : 0;
}

/* Grow or shrink where it lies, if that can be. */
static int resized(block *b, size_t size) {
    pthread_mutex_lock(&lock);
    block *next = after(b);
    if (size_of(b) < size && (next->size & FREE) && size_of(b) + HEADER + size_of(next) >= size) {
        take(next);
        b->size += HEADER + size_of(next);
        after(b)->before = b;
    }
    int fits = size_of(b) >= size;
    if (fits)
        trim(b, size);
    pthread_mutex_unlock(&lock);
    return fits;
}

EXPORT void *realloc(void *memory, size_t size) {
    if (!memory)
        return malloc(size);
    if (!is_ours(memory))
        fail("memory of another allocator was to be resized");
    if (!size) {
        free(memory);
        return NULL;
    }
    if (size <= PTRDIFF_MAX - 4096 && resized(block_of(memory), rounded(size)))
        return memory;
    void *moved = malloc(size);
    if (moved) {
        size_t old = size_of(block_of(memory));
        memcpy(moved, memory, old < size ? old : size);
        free(memory);
    }
    return moved;
}

static int power_of_two(size_t n) { return n && !(n & (n - 1)); }

EXPORT int posix_memalign(void **memory, size_t alignment, size_t size) {
    if (!power_of_two(alignment) || alignment % sizeof(void *))
        return EINVAL;
    *memory = allocate(size, alignment);
    return *memory ? 0 : ENOMEM;
}

EXPORT void *aligned_alloc(size_t alignment, size_t size) {
    if (!power_of_two(alignment)) {
        errno = EINVAL;
        return NULL;
    }
    return allocate(size, alignment);
}

EXPORT void *memalign(size_t alignment, size_t size) { return aligned_alloc(alignment, size); }

EXPORT void *valloc(size_t size) { return allocate(size, 4096); }

EXPORT void *pvalloc(size_t size) { return allocate((size + 4095) & ~(size_t)4095, 4096); }

/* Tells the program that it runs on this heap, and where: nothing is believed of an environment variable. */
EXPORT void garrison_secret_heap(uintptr_t *start, uintptr_t *end) {
    *start = (uintptr_t)arena;
    *end = (uintptr_t)arena_end;
}
