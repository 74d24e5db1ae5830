/* Counts the calls that change files below a folder, and lets one of them fail.

   Loaded by LD_PRELOAD, so that it sees the calls of Python, of Rust (safetensors), of C++ (pyarrow)
   and of SQLite alike. faults_arm() starts to count; before that everything passes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FULL, EIO_ONCE, TORN };
static int kind = OFF, log_file = -1;
static long at, count;
static char root[4096];

void faults_arm(const char *folder, int kind_, long at_, int log_file_) {
    strncpy(root, folder, sizeof root - 1);
    at = at_, count = 0, log_file = log_file_, kind = kind_;
}

static int below(const char *path) {
    size_t n = strlen(root);
    return kind && !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}

static int named(int folder, const char *path, char *found) {
    char link[64];
    ssize_t n = 0;
    if (!kind || !path) return 0;
    if (path[0] == '/') return snprintf(found, 8192, "%s", path), below(found);
    if (folder == AT_FDCWD) {
        if (!getcwd(found, 4096)) return 0;
        n = strlen(found);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        if ((n = readlink(link, found, 4095)) < 0) return 0;
    }
    snprintf(found + n, 8192 - n, "/%s", path);
    return below(found);
}

static int opened(int file, char *found) {
    char link[64];
    if (!kind) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, found, 4095);
    if (n < 0) return 0;
    found[n] = 0;
    return below(found);
}

static int there(const char *path) { return !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW); }

static void end(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Count a call; return the errno with which it fails, 0 if it passes, -1 if it tears. */
static int step(const char *name, const char *path, int grows) {
    char line[8400];
    long n = __sync_add_and_fetch(&count, 1);
    int size = snprintf(line, sizeof line, "%s %s\n", name, path + strlen(root));
    if (log_file >= 0) syscall(SYS_write, log_file, line, size);
    int hit = n == at;
    if (kind == KILL && hit) end();
    if (kind == TORN && hit) {
        if (strcmp(name, "write")) end();
        return -1;
    }
    if (kind == FULL && n >= at && grows) return ENOSPC;
    if (kind == EIO_ONCE && hit) return EIO;
    return 0;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)
#define PASS(name, grows) \
    do { int e = step(name, found, grows); if (e > 0) { errno = e; return -1; } } while (0)

#define OPEN(function, folder_parameter, folder, folder_argument) \
    int function(folder_parameter const char *path, int flags, ...) { \
        char found[8192]; \
        mode_t mode = 0; \
        REAL(int, #function, folder_parameter const char *, int, ...); \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); \
        } \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) && named(folder, path, found)) \
            PASS("open", 1); \
        return real(folder_argument path, flags, mode); \
    }
#define COMMA ,
OPEN(open, , AT_FDCWD, )
OPEN(open64, , AT_FDCWD, )
OPEN(openat, int folder COMMA, folder, folder COMMA)
OPEN(openat64, int folder COMMA, folder, folder COMMA)

#define WRITE(function, more_parameters, more_arguments) \
    ssize_t function(int file, const void *data, size_t size more_parameters) { \
        char found[8192]; \
        REAL(ssize_t, #function, int, const void *, size_t more_parameters); \
        if (opened(file, found)) { \
            int e = step("write", found, 1); \
            if (e > 0) { errno = e; return -1; } \
            if (e < 0) { real(file, data, size / 2 more_arguments); end(); } \
        } \
        return real(file, data, size more_arguments); \
    }
WRITE(write, , )
WRITE(pwrite, COMMA off_t offset, COMMA offset)
WRITE(pwrite64, COMMA off_t offset, COMMA offset)

ssize_t writev(int file, const struct iovec *parts, int number) {
    char found[8192];
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (opened(file, found)) {
        int e = step("write", found, 1);
        if (e > 0) { errno = e; return -1; }
        if (e < 0) { real(file, parts, number / 2); end(); }
    }
    return real(file, parts, number);
}

#define FILE_CALL(function, name, more_parameters, more_arguments) \
    int function(int file more_parameters) { \
        char found[8192]; \
        REAL(int, #function, int more_parameters); \
        if (opened(file, found)) PASS(name, 0); \
        return real(file more_arguments); \
    }
FILE_CALL(fsync, "fsync", , )
FILE_CALL(fdatasync, "fsync", , )
FILE_CALL(ftruncate, "truncate", COMMA off_t size, COMMA size)
FILE_CALL(ftruncate64, "truncate", COMMA off_t size, COMMA size)

/* A call that changes nothing, because there is something already or nothing, does not count. */
#define PATH_CALL(function, name, grows, needs, more_parameters, more_arguments) \
    int function(const char *path more_parameters) { \
        char found[8192]; \
        REAL(int, #function, const char * more_parameters); \
        if (named(AT_FDCWD, path, found) && there(found) == needs) \
            PASS(name, grows); \
        return real(path more_arguments); \
    }
PATH_CALL(unlink, "unlink", 0, 1, , )
PATH_CALL(rmdir, "rmdir", 0, 1, , )
PATH_CALL(mkdir, "mkdir", 1, 0, COMMA mode_t mode, COMMA mode)

int unlinkat(int folder, const char *path, int flags) {
    char found[8192];
    REAL(int, "unlinkat", int, const char *, int);
    if (named(folder, path, found)) PASS(flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0);
    return real(folder, path, flags);
}

/* The second path is the one that is made. */
#define TWO_PATHS(function, name) \
    int function(const char *path, const char *to) { \
        char found[8192]; \
        REAL(int, #function, const char *, const char *); \
        if (named(AT_FDCWD, to, found)) PASS(name, 1); \
        return real(path, to); \
    }
TWO_PATHS(rename, "rename")
TWO_PATHS(link, "link")
TWO_PATHS(symlink, "link")

int renameat(int folder, const char *path, int other, const char *to) {
    char found[8192];
    REAL(int, "renameat", int, const char *, int, const char *);
    if (named(other, to, found)) PASS("rename", 1);
    return real(folder, path, other, to);
}

int linkat(int folder, const char *path, int other, const char *to, int flags) {
    char found[8192];
    REAL(int, "linkat", int, const char *, int, const char *, int);
    if (named(other, to, found)) PASS("link", 1);
    return real(folder, path, other, to, flags);
}
