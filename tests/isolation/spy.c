/* Looks for the launcher's end mark wherever a process of the job's user can look. Prints where it found one, then what
 * it found on both streams, as the launcher would, and ends with 7. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIGN = 0x1e, DIGITS = 32, MARK = DIGITS + 2, CHUNK = 1 << 20 };

static char seen[MARK + 1];
static char buffer[CHUNK];

static void scan(const char *where, size_t length) {
    const char *sign = buffer;
    while ((sign = memchr(sign, SIGN, buffer + length - sign)) != NULL) {
        size_t at = sign++ - buffer, digit = 1;
        if (at + MARK > length || buffer[at + MARK - 1] != SIGN) continue;
        while (digit <= DIGITS && isxdigit((unsigned char)buffer[at + digit])) digit++;
        if (digit <= DIGITS) continue;
        printf("found: %s\n", where);
        memcpy(seen, buffer + at, MARK);
        return;
    }
}

static void scan_file(const char *path) {
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) return;
    ssize_t length = read(file, buffer, sizeof buffer);
    if (length > 0) scan(path, length);
    close(file);
}

static void scan_directory(const char *path) {
    char name[512];
    struct dirent *entry;
    DIR *directory = opendir(path);
    if (directory == NULL) return;
    while ((entry = readdir(directory)) != NULL) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        scan_file(name);
    }
    closedir(directory);
}

/* By /proc/PID/mem, or by process_vm_readv(2). */
static void scan_memory(int pid) {
    char path[64], line[512], where[96];
    unsigned long begin, end;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    if (maps == NULL) return;
    while (fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%lx-%lx r", &begin, &end) != 2) continue;
        for (unsigned long at = begin; at < end; at += CHUNK - MARK) {
            size_t size = end - at < CHUNK ? end - at : CHUNK;
            struct iovec here = {buffer, size}, there = {(void *)at, size};
            ssize_t length = memory < 0 ? -1 : pread(memory, buffer, size, at);
            snprintf(where, sizeof where, "memory of %d", pid);
            if (length > 0) scan(where, length);
            length = process_vm_readv(pid, &here, 1, &there, 1, 0);
            snprintf(where, sizeof where, "process_vm_readv of %d", pid);
            if (length > 0) scan(where, length);
        }
    }
    fclose(maps);
    if (memory >= 0) close(memory);
}

int main(void) {
    char path[64];
    struct dirent *entry;
    const char *files[] = {"environ", "cmdline", "auxv", "stack", "syscall", "stat"};
    DIR *processes = opendir("/proc");
    while ((entry = readdir(processes)) != NULL) {
        int pid = atoi(entry->d_name);
        if (pid == 0) continue;
        for (size_t file = 0; file < sizeof files / sizeof *files; file++) {
            snprintf(path, sizeof path, "/proc/%d/%s", pid, files[file]);
            scan_file(path);
        }
        if (pid == getpid()) continue;
        snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
        scan_directory(path);
        snprintf(path, sizeof path, "/proc/%d/fd", pid);
        /* Node.js waits for its children by pipes of its own: it must find in them what is in them. */
        if (pid != getppid() || getenv("CHILD_OF_NODE") == NULL) scan_directory(path);
        scan_memory(pid);
        if (ptrace(PTRACE_ATTACH, pid, 0, 0) == 0) {
            waitpid(pid, NULL, __WALL);
            scan_memory(pid);
            ptrace(PTRACE_DETACH, pid, 0, 0);
        }
    }
    closedir(processes);
    scan_directory("/dev/fd");
    scan_directory("/run/cronium");
    printf("looked\n%s", seen);
    fprintf(stderr, "%s", seen);
    return 7;
}
