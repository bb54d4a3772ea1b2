/* Tries, from inside a job, what a job must not be able to do, and prints what came of each try: `call NAME RESULT`
 * (ok, or the errno's name), and `found KIND PATH` for what it finds on a walk over every directory it can see.
 * Linked statically, so that each runner image can execute it. Changes nothing that is not its own container's. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/keyctl.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static long page[1024];

/* Each try in a process of its own: one that succeeds must not change the tries after it. */
#define TRY(name, expression)                                                            \
    do {                                                                                 \
        fflush(stdout);                                                                  \
        pid_t child = fork();                                                            \
        if (child == 0) {                                                                \
            errno = 0;                                                                   \
            long result = (long)(expression);                                            \
            printf("call %s %s\n", name, result == -1 ? strerrorname_np(errno) : "ok");  \
            fflush(stdout);                                                              \
            _exit(0);                                                                    \
        }                                                                                \
        int state;                                                                       \
        waitpid(child, &state, 0);                                                       \
        if (WIFSIGNALED(state))                                                          \
            printf("call %s signal-%d\n", name, WTERMSIG(state));                        \
    } while (0)

static long clone_with(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long clone3_with(unsigned long flags) {
    struct clone_args arguments = {.flags = flags, .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long write_to(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    return file == -1 ? -1 : write(file, text, strlen(text));
}

static long append_nothing(const char *path) { return open(path, O_WRONLY | O_APPEND); }

static long read_from(const char *path) {
    char byte;
    int file = open(path, O_RDONLY);
    if (file == -1)
        return -1;
    long got = read(file, &byte, 1);
    if (got == 0)
        errno = ENODATA; /* masked: it is there and empty */
    return got == 1 ? 1 : -1;
}

static void namespaces(void) {
    TRY("unshare-user", unshare(CLONE_NEWUSER));
    TRY("unshare-mount", unshare(CLONE_NEWNS));
    TRY("unshare-net", unshare(CLONE_NEWNET));
    TRY("unshare-pid", unshare(CLONE_NEWPID));
    TRY("clone-user", clone_with(CLONE_NEWUSER));
    TRY("clone-mount", clone_with(CLONE_NEWNS));
    TRY("clone3-user", clone3_with(CLONE_NEWUSER));
    TRY("setns", syscall(SYS_setns, open("/proc/self/ns/net", O_RDONLY), 0));
    TRY("chroot", chroot("/tmp"));
    TRY("sethostname", sethostname("x", 1));
    TRY("setdomainname", setdomainname("x", 1));
}

static void file_systems(void) {
    TRY("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
    TRY("remount", mount("none", "/", NULL, MS_REMOUNT | MS_BIND, NULL));
    TRY("umount", umount2("/workspace/scripts", MNT_DETACH));
    TRY("pivot-root", syscall(SYS_pivot_root, "/", "/tmp"));
    TRY("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    TRY("open-tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */));
    TRY("move-mount", syscall(SYS_move_mount, AT_FDCWD, "/tmp", AT_FDCWD, "/workspace", 0));
    TRY("open-by-handle-at", syscall(SYS_open_by_handle_at, AT_FDCWD, page, 0));
    TRY("mknod-block", mknod("/tmp/block", S_IFBLK | 0600, makedev(8, 0)));
    TRY("mknod-char", mknod("/tmp/char", S_IFCHR | 0600, makedev(1, 1)));
    TRY("chown", chown("/tmp", 0, 0));
    TRY("swapon", syscall(SYS_swapon, "/tmp/x", 0));
    TRY("quotactl", syscall(SYS_quotactl, 0, "/", 0, page));
    TRY("fanotify", syscall(SYS_fanotify_init, 0, 0));
}

static void kernel(void) {
    TRY("bpf", syscall(SYS_bpf, 0, page, 64));
    TRY("perf-event-open", syscall(SYS_perf_event_open, page, 0, -1, -1, 0));
    TRY("keyctl", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1));
    TRY("add-key", syscall(SYS_add_key, "user", "x", "y", 1, KEY_SPEC_PROCESS_KEYRING));
    TRY("request-key", syscall(SYS_request_key, "user", "x", NULL, KEY_SPEC_PROCESS_KEYRING));
    TRY("kexec-load", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    TRY("kexec-file-load", syscall(SYS_kexec_file_load, -1, -1, 0, "", 0));
    TRY("init-module", syscall(SYS_init_module, page, sizeof page, ""));
    TRY("finit-module", syscall(SYS_finit_module, 0, "", 0));
    TRY("delete-module", syscall(SYS_delete_module, "x", 0));
    TRY("userfaultfd", syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */));
    TRY("io-uring", syscall(SYS_io_uring_setup, 1, page));
    TRY("ptrace-first-process", ptrace(PTRACE_SEIZE, 1, NULL, NULL));
    TRY("reboot", syscall(SYS_reboot, 0xfee1dead, 0x28121969, 0, NULL)); /* turns Ctrl-Alt-Del off: harmless */
    struct timeval now; /* as it is: should one of them be allowed, the host's clock stays right */
    gettimeofday(&now, NULL);
    TRY("settimeofday", settimeofday(&now, NULL));
    TRY("clock-settime", clock_settime(CLOCK_REALTIME, &(struct timespec){now.tv_sec, now.tv_usec * 1000}));
    TRY("adjtimex", syscall(SYS_adjtimex, (page[0] = 1, page)));
    TRY("acct", acct("/tmp/x"));
    TRY("syslog", syscall(SYS_syslog, 3, page, sizeof page));
    TRY("personality-no-randomize", personality(ADDR_NO_RANDOMIZE));
    TRY("lookup-dcookie", syscall(SYS_lookup_dcookie, 0, page, 1));
    TRY("pidfd-getfd", syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, 1, 0), 0, 0));
    TRY("setuid-0", setuid(0));
    TRY("setgid-0", setgid(0));
    TRY("setgroups", syscall(SYS_setgroups, 0, NULL));
    TRY("nice", setpriority(PRIO_PROCESS, 0, -5));
    TRY("real-time", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1}));
    TRY("raise-limit", setrlimit(RLIMIT_NOFILE, &(struct rlimit){1 << 20, 1 << 20}));
    TRY("oom-score", write_to("/proc/self/oom_score_adj", "-1000"));
#ifdef SYS_iopl
    TRY("iopl", syscall(SYS_iopl, 3));
    TRY("ioperm", syscall(SYS_ioperm, 0x80, 1, 1));
#endif
}

static void sockets(void) {
    TRY("socket-alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
    TRY("socket-vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    TRY("socket-packet", socket(AF_PACKET, SOCK_RAW, 0));
    TRY("socket-raw-icmp", socket(AF_INET, SOCK_RAW, 1));
    TRY("socket-raw-icmp6", socket(AF_INET6, SOCK_RAW, 58));
}

static void proc_and_sys(void) {
    TRY("write-sysrq", append_nothing("/proc/sysrq-trigger"));
    TRY("write-core-pattern", append_nothing("/proc/sys/kernel/core_pattern"));
    TRY("write-modprobe", append_nothing("/proc/sys/kernel/modprobe"));
    TRY("write-ip-forward", append_nothing("/proc/sys/net/ipv4/ip_forward"));
    TRY("write-uevent-helper", append_nothing("/sys/kernel/uevent_helper"));
    TRY("write-hosts", append_nothing("/etc/hosts"));
    TRY("write-resolv-conf", append_nothing("/etc/resolv.conf"));
    TRY("write-hostname", append_nothing("/etc/hostname"));
    TRY("write-gate", append_nothing("/run/cronium/gate"));
    TRY("write-start", append_nothing("/run/cronium/start.sh"));
    TRY("write-uid-map", write_to("/proc/self/uid_map", "0 0 1"));
    TRY("read-kcore", read_from("/proc/kcore"));
    TRY("read-keys", read_from("/proc/keys"));
    TRY("read-timer-list", read_from("/proc/timer_list"));
    TRY("read-mem", read_from("/dev/mem"));
    TRY("read-kmsg", read_from("/dev/kmsg"));
    TRY("read-firmware", open("/sys/firmware/acpi/tables/DSDT", O_RDONLY));
    TRY("read-debugfs", open("/sys/kernel/debug/kprobes/list", O_RDONLY));
}

static int look(const char *path, const struct stat *seen, int type, struct FTW *level) {
    (void)level;
    if (S_ISSOCK(seen->st_mode))
        printf("found socket %s\n", path);
    if (S_ISBLK(seen->st_mode) || (S_ISCHR(seen->st_mode) && strncmp(path, "/dev/pts", 8) != 0))
        printf("found device %s\n", path);
    if (S_ISREG(seen->st_mode) && (seen->st_mode & 06000))
        printf("found setuid %s\n", path);
    if (S_ISREG(seen->st_mode) && lgetxattr(path, "security.capability", NULL, 0) > 0)
        printf("found capability %s\n", path);
    if (S_ISREG(seen->st_mode) && strncmp(path, "/workspace", 10) != 0 && strncmp(path, "/tmp", 4) != 0 &&
        strncmp(path, "/proc/", 6) != 0) {
        int file = open(path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW);
        if (file != -1) {
            printf("found writable-file %s\n", path);
            close(file);
        }
    }
    if (type == FTW_D || type == FTW_DNR) {
        if (strcmp(path, "/proc") == 0)
            return FTW_SKIP_SUBTREE;
        char name[4200];
        snprintf(name, sizeof name, "%s/.probe-%d", path, getpid());
        int file = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
        if (file != -1) {
            printf("found writable-directory %s\n", path);
            close(file);
            unlink(name);
        }
    }
    return FTW_CONTINUE;
}

static int look_in_proc(const char *path, const struct stat *seen, int type, struct FTW *level) {
    (void)type, (void)level;
    if (!S_ISREG(seen->st_mode))
        return FTW_CONTINUE;
    int file = open(path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW);
    if (file != -1) {
        printf("found writable-file %s\n", path);
        close(file);
    }
    return FTW_CONTINUE;
}

static void others(void) {
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; (entry = readdir(processes)) != NULL;) {
        char path[300], line[256] = {0};
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int file = entry->d_name[0] >= '0' && entry->d_name[0] <= '9' ? open(path, O_RDONLY) : -1;
        if (file != -1 && read(file, line, sizeof line - 1) > 0)
            printf("found process %s\n", line);
        if (file != -1)
            close(file);
    }
    closedir(processes);
    TRY("neighbours-queue", mq_open("/cronium-neighbour", O_RDWR));
    TRY("neighbours-memory", syscall(SYS_shmget, 0x4711, 4096, 0600));
    const struct {
        sa_family_t family;
        char path[32];
    } address = {AF_UNIX, "\0cronium-neighbour"};
    TRY("neighbours-abstract-socket",
        connect(socket(AF_UNIX, SOCK_STREAM, 0), (const struct sockaddr *)&address, sizeof(sa_family_t) + 18));
}

int main(void) {
    namespaces();
    file_systems();
    kernel();
    sockets();
    proc_and_sys();
    others();
    nftw("/", look, 64, FTW_PHYS | FTW_ACTIONRETVAL);
    nftw("/proc/sys", look_in_proc, 64, FTW_PHYS | FTW_ACTIONRETVAL);
    return 0;
}
