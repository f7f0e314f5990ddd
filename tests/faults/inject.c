/* Faults in file operations below one folder, counted: the n-th can be made to fail.
 *
 * Preloaded into a Python process (LD_PRELOAD); armed by fault_arm(). A site is a call that changes
 * something on disk: a file made or opened for writing, a write, a flush, a rename, a folder made,
 * a file shortened or removed. Modes:
 *   0  count only, and log
 *   1  SIGKILL before the call
 *   2  SIGKILL in the middle: half of a write, just after any other call
 *   3  from this call on the disk is full: what needs space fails with ENOSPC
 *   4  this call alone fails with ENOSPC, or EIO where it needs no space
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static long target, count;
static int mode, log_descriptor = -1, armed, full;

void fault_arm(const char *folder, long number, int how, const char *log_file) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    target = number, mode = how, count = 0, full = 0;
    log_descriptor = (int)syscall(SYS_openat, AT_FDCWD, log_file,
                                  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    armed = 1;
}

long fault_count(void) { return count; }

static int below(const char *path) { return strncmp(path, root, root_length) == 0; }

static int path_below(int folder, const char *path) {
    char whole[PATH_MAX];
    if (path[0] == '/') return below(path);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, sizeof whole)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, whole, sizeof whole - 1);
        if (n < 0) return 0;
        whole[n] = 0;
    }
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return below(whole);
}

static int descriptor_below(int descriptor, char *whole, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(link, whole, size - 1);
    if (n < 0) return 0;
    whole[n] = 0;
    return below(whole);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What is to happen to this call: 0 as usual, 1 half and die, otherwise the error's number. */
static int site(const char *what, const char *path, int needs_space) {
    count++;
    if (log_descriptor >= 0) {
        char line[PATH_MAX + 64];
        int n = snprintf(line, sizeof line, "%ld %s %s\n", count, what, path);
        syscall(SYS_write, log_descriptor, line, (size_t)n);
    }
    if (mode == 3 && count == target) full = 1;
    if (full) return needs_space ? ENOSPC : 0;
    if (count != target) return 0;
    if (mode == 1) die();
    if (mode == 2) return 1;
    if (mode == 4) return needs_space ? ENOSPC : EIO;
    return 0;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define GUARDED(inside, what, path, needs_space, call) \
    if (!armed || !(inside)) return call; \
    int fate = site(what, path, needs_space); \
    if (fate > 1) { errno = fate; return -1; } \
    if (fate == 1) { (void)call; die(); } \
    return call

static int changes(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

#define MODE_ARGUMENT(flags) \
    mode_t permissions = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        permissions = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE_ARGUMENT(flags)
    GUARDED(changes(flags) && path_below(AT_FDCWD, path), "open", path, 1,
            real(path, flags, permissions));
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE_ARGUMENT(flags)
    GUARDED(changes(flags) && path_below(AT_FDCWD, path), "open", path, 1,
            real(path, flags, permissions));
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE_ARGUMENT(flags)
    GUARDED(changes(flags) && path_below(folder, path), "open", path, 1,
            real(folder, path, flags, permissions));
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE_ARGUMENT(flags)
    GUARDED(changes(flags) && path_below(folder, path), "open", path, 1,
            real(folder, path, flags, permissions));
}

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    char path[PATH_MAX];
    if (!armed || !descriptor_below(descriptor, path, sizeof path))
        return real(descriptor, data, size);
    int fate = site("write", path, 1);
    if (fate > 1) { errno = fate; return -1; }
    if (fate == 1) { (void)!real(descriptor, data, size / 2); die(); }
    return real(descriptor, data, size);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t where) {
    REAL(pwrite64);
    char path[PATH_MAX];
    GUARDED(descriptor_below(descriptor, path, sizeof path), "pwrite", path, 1,
            real(descriptor, data, size, where));
}

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    REAL(writev);
    char path[PATH_MAX];
    GUARDED(descriptor_below(descriptor, path, sizeof path), "writev", path, 1,
            real(descriptor, parts, number));
}

int fsync(int descriptor) {
    REAL(fsync);
    char path[PATH_MAX];
    GUARDED(descriptor_below(descriptor, path, sizeof path), "fsync", path, 1, real(descriptor));
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(ftruncate64);
    char path[PATH_MAX];
    GUARDED(descriptor_below(descriptor, path, sizeof path), "ftruncate", path, 0,
            real(descriptor, size));
}

int rename(const char *from, const char *to) {
    REAL(rename);
    GUARDED(path_below(AT_FDCWD, to), "rename", to, 1, real(from, to));
}

int mkdir(const char *path, mode_t permissions) {
    REAL(mkdir);
    GUARDED(path_below(AT_FDCWD, path), "mkdir", path, 1, real(path, permissions));
}

int unlink(const char *path) {
    REAL(unlink);
    GUARDED(path_below(AT_FDCWD, path), "unlink", path, 0, real(path));
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    GUARDED(path_below(folder, path), "unlink", path, 0, real(folder, path, flags));
}

int rmdir(const char *path) {
    REAL(rmdir);
    GUARDED(path_below(AT_FDCWD, path), "rmdir", path, 0, real(path));
}
