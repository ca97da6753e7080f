/* A disk that is full, or fails, as long as a file exists. Preloaded into a process.

   DISK_FLAG    while this file exists the disk fails; it holds a number of errno and, optionally, bytes that still fit
   DISK_MATCH   a part of the paths on this disk

   A full disk (ENOSPC, EDQUOT) still takes what is written over blocks that a file has; a broken one takes nothing.
   With DISK_SYNC=1 only fsync fails, as on network disks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long taken;

static int fault(long *left) {
    const char *flag = getenv("DISK_FLAG");
    if (!flag) return 0;
    int saved = errno, number = 0;
    long room = 0;
    FILE *file = fopen(flag, "r");
    if (file) {
        if (fscanf(file, "%d %ld", &number, &room) < 1) number = ENOSPC;
        fclose(file);
    } else {
        taken = 0;
    }
    errno = saved;
    if (left) *left = room > taken ? room - taken : 0;
    return number;
}

static int is_ours(const char *path) {
    const char *match = getenv("DISK_MATCH");
    return match && path && strstr(path, match) != NULL;
}

static int is_our_file(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static int only_syncs(void) { return getenv("DISK_SYNC") != NULL; }

/* How many of so many bytes fit at an offset; -1 with errno set if none does. */
static ssize_t fits(int descriptor, size_t count, off_t offset) {
    long left = 0;
    if (!getenv("DISK_FLAG") || only_syncs() || !is_our_file(descriptor)) return (ssize_t)count;
    int number = fault(&left);
    if (!number || !count) return (ssize_t)count;
    if (number == ENOSPC || number == EDQUOT) {
        struct stat status;
        if (fstat(descriptor, &status) || !S_ISREG(status.st_mode)) return (ssize_t)count;
        if (offset < 0)
            offset = fcntl(descriptor, F_GETFL) & O_APPEND ? status.st_size : lseek(descriptor, 0, SEEK_CUR);
        long over = status.st_size > offset ? (long)(status.st_size - offset) : 0;
        long room = over + left;
        if (room > 0) {
            long given = (long)count < room ? (long)count : room;
            if (given > over) taken += given - over;
            return given;
        }
    }
    errno = number;
    return -1;
}

ssize_t write(int descriptor, const void *data, size_t count) {
    ssize_t some = fits(descriptor, count, -1);
    return some < 0 ? -1 : REAL(write)(descriptor, data, (size_t)some);
}

ssize_t pwrite(int descriptor, const void *data, size_t count, off_t offset) {
    ssize_t some = fits(descriptor, count, offset);
    return some < 0 ? -1 : REAL(pwrite)(descriptor, data, (size_t)some, offset);
}

ssize_t pwrite64(int descriptor, const void *data, size_t count, off64_t offset) {
    ssize_t some = fits(descriptor, count, offset);
    return some < 0 ? -1 : REAL(pwrite64)(descriptor, data, (size_t)some, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    size_t total = 0;
    for (int i = 0; i < count; i++) total += parts[i].iov_len;
    ssize_t some = fits(descriptor, total, -1);
    if (some < 0) return -1;
    if (some >= 0 && (size_t)some < total) errno = ENOSPC;
    return some < 0 || (size_t)some < total ? -1 : REAL(writev)(descriptor, parts, count);
}

static int broken(void) {
    int number = fault(NULL);
    return number && number != ENOSPC && number != EDQUOT && number != EFBIG ? number : 0;
}

#define SYNC(name)                                                             \
    int name(int descriptor) {                                                 \
        int number = only_syncs() ? fault(NULL) : broken();                    \
        if (number && is_our_file(descriptor)) {                               \
            errno = number;                                                    \
            return -1;                                                         \
        }                                                                      \
        return REAL(name)(descriptor);                                         \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *old, const char *new) {
    int number = only_syncs() ? 0 : broken();
    if (number && (is_ours(old) || is_ours(new))) {
        errno = number;
        return -1;
    }
    return REAL(rename)(old, new);
}

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...) {                               \
        va_list more;                                                          \
        va_start(more, flags);                                                 \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                          \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && !only_syncs() && is_ours(path)) { \
            int number = broken();                                             \
            if (number) {                                                      \
                errno = number;                                                \
                return -1;                                                     \
            }                                                                  \
        }                                                                      \
        return REAL(name)(path, flags, mode);                                  \
    }
OPEN(open)
OPEN(open64)
