/* Asks a supervisor before every libc call that changes a file, or opens one for reading.

   Loaded with LD_PRELOAD. `watch(root, socket)` starts watching this process: before each call on a
   path below `root`, the socket gets "call\0path\0other path", and answers with an int32:
   0: make the call; -1: die at once; a positive number: fail with this errno. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static int supervisor = -1;
static pid_t watched;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void watch(const char *path, int socket)
{
    strncpy(root, path, sizeof root - 1);
    root_length = strlen(root);
    supervisor = socket;
    watched = getpid();
}

/* Write the absolute path of `path`, seen from the folder `descriptor`. */
static void absolute(int descriptor, const char *path, char *result)
{
    char folder[PATH_MAX], link[64];
    if (path[0] == '/') {
        snprintf(result, PATH_MAX, "%s", path);
        return;
    }
    if (descriptor == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, folder, sizeof folder - 1);
    folder[length < 0 ? 0 : length] = 0;
    if (path[0] && strcmp(path, "."))
        snprintf(result, PATH_MAX, "%.2000s/%.2000s", folder, path);
    else
        snprintf(result, PATH_MAX, "%s", folder);
}

static int below_root(const char *path)
{
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* Return 0 if the call is to be made, else -1 with errno set. */
static int ask(const char *call, int folder, const char *path, int other_folder, const char *other)
{
    char first[PATH_MAX], second[PATH_MAX] = "", message[2 * PATH_MAX + 64];
    int32_t answer = 0;
    int before = errno;
    if (supervisor < 0 || getpid() != watched)
        return 0;
    absolute(folder, path, first);
    if (other)
        absolute(other_folder, other, second);
    if (!below_root(first) && !below_root(second))
        return 0;
    int size = snprintf(message, sizeof message, "%s%c%s%c%s", call, 0, first, 0, second);
    pthread_mutex_lock(&lock);
    if (send(supervisor, message, size, 0) != size || recv(supervisor, &answer, 4, 0) != 4)
        answer = -1;
    pthread_mutex_unlock(&lock);
    if (answer < 0)
        kill(getpid(), SIGKILL);
    errno = answer ? answer : before;
    return answer ? -1 : 0;
}

#define ASK(call, path) ask(call, AT_FDCWD, path, 0, NULL)
#define ASK_AT(call, folder, path) ask(call, folder, path, 0, NULL)
#define ASK_FD(call, fd) ask(call, fd, "", 0, NULL)
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *kind_of_open(int flags)
{
    int changes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    return changes ? "open" : "read";
}

static mode_t mode_of(int flags, va_list rest)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...)                         \
    {                                                                  \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        mode_t mode = mode_of(flags, rest);                            \
        va_end(rest);                                                  \
        if (ASK(kind_of_open(flags), path))                            \
            return -1;                                                 \
        return REAL(name)(path, flags, mode);                          \
    }
#define OPENAT(name)                                                   \
    int name(int folder, const char *path, int flags, ...)             \
    {                                                                  \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        mode_t mode = mode_of(flags, rest);                            \
        va_end(rest);                                                  \
        if (ASK_AT(kind_of_open(flags), folder, path))                 \
            return -1;                                                 \
        return REAL(name)(folder, path, flags, mode);                  \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* A call: result, name, parameters, arguments, and how to ask. */
#define CALL(type, name, parameters, arguments, asked)                 \
    type name parameters                                               \
    {                                                                  \
        if (asked)                                                     \
            return -1;                                                 \
        return REAL(name) arguments;                                   \
    }
#define PATH const char *path
#define AT int folder, const char *path
#define TWO const char *path, const char *other
#define TWO_AT int folder, const char *path, int other_folder, const char *other

CALL(int, creat, (PATH, mode_t mode), (path, mode), ASK("open", path))
CALL(int, creat64, (PATH, mode_t mode), (path, mode), ASK("open", path))
CALL(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), ASK_FD("write", fd))
CALL(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), ASK_FD("write", fd))
CALL(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), ASK_FD("write", fd))
CALL(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), ASK_FD("write", fd))
CALL(ssize_t, sendfile, (int fd, int in, off_t *o, size_t n), (fd, in, o, n), ASK_FD("write", fd))
CALL(ssize_t, sendfile64, (int fd, int in, off64_t *o, size_t n), (fd, in, o, n), ASK_FD("write", fd))
CALL(ssize_t, copy_file_range, (int in, off64_t *i, int fd, off64_t *o, size_t n, unsigned f),
     (in, i, fd, o, n, f), ASK_FD("write", fd))
CALL(int, ftruncate, (int fd, off_t n), (fd, n), ASK_FD("write", fd))
CALL(int, ftruncate64, (int fd, off64_t n), (fd, n), ASK_FD("write", fd))
CALL(int, truncate, (PATH, off_t n), (path, n), ASK("write", path))
CALL(int, truncate64, (PATH, off64_t n), (path, n), ASK("write", path))
CALL(int, fallocate64, (int fd, int m, off64_t o, off64_t n), (fd, m, o, n), ASK_FD("write", fd))
CALL(int, fallocate, (int fd, int m, off_t o, off_t n), (fd, m, o, n), ASK_FD("write", fd))
CALL(int, fsync, (int fd), (fd), ASK_FD("fsync", fd))
CALL(int, fdatasync, (int fd), (fd), ASK_FD("fsync", fd))
CALL(int, chmod, (PATH, mode_t m), (path, m), ASK("chmod", path))
CALL(int, fchmod, (int fd, mode_t m), (fd, m), ASK_FD("chmod", fd))
CALL(int, fchmodat, (AT, mode_t m, int f), (folder, path, m, f), ASK_AT("chmod", folder, path))
CALL(int, mkdir, (PATH, mode_t m), (path, m), ASK("mkdir", path))
CALL(int, mkdirat, (AT, mode_t m), (folder, path, m), ASK_AT("mkdir", folder, path))
CALL(int, rmdir, (PATH), (path), ASK("rmdir", path))
CALL(int, unlink, (PATH), (path), ASK("unlink", path))
CALL(int, unlinkat, (AT, int f), (folder, path, f),
     ASK_AT(f & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path))
CALL(int, rename, (TWO), (path, other), ask("rename", AT_FDCWD, path, AT_FDCWD, other))
CALL(int, renameat, (TWO_AT), (folder, path, other_folder, other),
     ask("rename", folder, path, other_folder, other))
CALL(int, renameat2, (TWO_AT, unsigned f), (folder, path, other_folder, other, f),
     ask("rename", folder, path, other_folder, other))
CALL(int, link, (TWO), (path, other), ask("link", AT_FDCWD, path, AT_FDCWD, other))
CALL(int, linkat, (TWO_AT, int f), (folder, path, other_folder, other, f),
     ask("link", folder, path, other_folder, other))
CALL(int, symlink, (TWO), (path, other), ask("link", AT_FDCWD, path, AT_FDCWD, other))
CALL(int, symlinkat, (PATH, int folder, const char *other), (path, folder, other),
     ask("link", AT_FDCWD, path, folder, other))
