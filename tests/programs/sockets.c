// SPDX-License-Identifier: Apache-2.0
// Small programs that use blocking sockets as applications do; each ends with 0 when all bytes were right.
//
//   upload IP PORT BYTES     sends BYTES, then blocks in recv() for an answer of 8 bytes: the count
//   ask IP PORT ROUNDS       asks and blocks in recv() for the answer
//   waitall IP PORT ROUNDS   asks for 100,000 bytes and takes them with one MSG_WAITALL
//   peek IP PORT ROUNDS      looks at an answer with MSG_PEEK before taking it
//   fionread IP PORT ROUNDS  waits until FIONREAD counts a whole answer, then takes it
//   splice PORT TO           listens on PORT, moves bytes to 127.0.0.1:TO and back with splice(2)
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int dial(const char *ip, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, ip, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
    return fd;
}

static void send_all(int fd, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
        if (sent <= 0) die("send");
        bytes += sent;
        length -= sent;
    }
}

// Blocks in recv() until all is there; a blocking recv() that fails with EAGAIN is what must not happen.
static void recv_all(int fd, char *bytes, size_t length) {
    while (length > 0) {
        ssize_t got = recv(fd, bytes, length, 0);
        if (got < 0) die("recv");
        if (got == 0) { errno = ECONNRESET; die("early end"); }
        bytes += got;
        length -= got;
    }
}

static int upload(int fd, uint64_t total) {
    static char chunk[65536];
    memset(chunk, 'u', sizeof chunk);
    for (uint64_t left = total; left > 0;) {
        size_t now = left < sizeof chunk ? left : sizeof chunk;
        send_all(fd, chunk, now);
        left -= now;
    }
    if (shutdown(fd, SHUT_WR)) die("shutdown");
    uint64_t counted = 0;
    recv_all(fd, (char *)&counted, sizeof counted);
    if (counted != total) {
        fprintf(stderr, "the server counted %llu of %llu\n", (unsigned long long)counted, (unsigned long long)total);
        return 1;
    }
    return 0;
}

static int expect(const char *bytes, size_t length, char byte, const char *what) {
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != byte) {
            fprintf(stderr, "%s: a wrong byte at %zu of %zu\n", what, i, length);
            return 1;
        }
    return 0;
}

static int ask(int fd, int rounds) {
    char out[1000], in[1000];
    for (int round = 0; round < rounds; round++) {
        memset(out, 'a' + round % 26, sizeof out);
        send_all(fd, out, sizeof out);
        recv_all(fd, in, sizeof in);
        if (expect(in, sizeof in, 'a' + round % 26, "ask")) return 1;
    }
    return 0;
}

static int waitall(int fd, int rounds) {
    static char out[100000], in[100000];
    for (int round = 0; round < rounds; round++) {
        memset(out, 'a' + round % 26, sizeof out);
        send_all(fd, out, sizeof out);
        ssize_t got = recv(fd, in, sizeof in, MSG_WAITALL);
        if (got != (ssize_t)sizeof in) {
            fprintf(stderr, "MSG_WAITALL gave %zd of %zu: %s\n", got, sizeof in, got < 0 ? strerror(errno) : "");
            return 1;
        }
        if (expect(in, sizeof in, 'a' + round % 26, "waitall")) return 1;
    }
    return 0;
}

static int peek(int fd, int rounds) {
    char out[1000], in[1000];
    for (int round = 0; round < rounds; round++) {
        memset(out, 'a' + round % 26, sizeof out);
        send_all(fd, out, sizeof out);
        ssize_t seen = recv(fd, in, sizeof in, MSG_PEEK);
        if (seen <= 0) die("peek");
        if (expect(in, seen, 'a' + round % 26, "peek")) return 1;
        recv_all(fd, in, sizeof in);
        if (expect(in, sizeof in, 'a' + round % 26, "after peek")) return 1;
    }
    return 0;
}

static int fionread(int fd, int rounds) {
    char out[1000], in[1000];
    struct timespec moment = {.tv_nsec = 100000};
    for (int round = 0; round < rounds; round++) {
        memset(out, 'a' + round % 26, sizeof out);
        send_all(fd, out, sizeof out);
        int waiting = 0;
        for (int look = 0; look < 5000 && waiting < (int)sizeof in; look++) {
            if (ioctl(fd, FIONREAD, &waiting)) die("FIONREAD");
            if (waiting < (int)sizeof in) nanosleep(&moment, NULL);
        }
        if (waiting != (int)sizeof in) {
            fprintf(stderr, "FIONREAD says %d of %zu\n", waiting, sizeof in);
            return 1;
        }
        recv_all(fd, in, sizeof in);
        if (expect(in, sizeof in, 'a' + round % 26, "fionread")) return 1;
    }
    return 0;
}

struct way { int from, to; };

static void *move(void *arg) {
    struct way way = *(struct way *)arg;
    int pipes[2];
    if (pipe(pipes)) die("pipe");
    for (;;) {
        ssize_t in = splice(way.from, NULL, pipes[1], NULL, 65536, SPLICE_F_MOVE);
        if (in <= 0) break;
        while (in > 0) {
            ssize_t out = splice(pipes[0], NULL, way.to, NULL, in, SPLICE_F_MOVE);
            if (out <= 0) goto end;
            in -= out;
        }
    }
end:
    shutdown(way.to, SHUT_WR);
    close(pipes[0]);
    close(pipes[1]);
    return NULL;
}

static void *relay(void *arg) {
    struct way there = *(struct way *)arg;
    struct way back = {there.to, there.from};
    free(arg);
    pthread_t thread;
    pthread_create(&thread, NULL, move, &back);
    move(&there);
    pthread_join(thread, NULL);
    close(there.from);
    close(there.to);
    return NULL;
}

static _Noreturn void splice_proxy(int port, int to) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 128)) die("listen");
    for (;;) {
        struct way *way = malloc(sizeof *way);
        way->from = accept(listener, NULL, NULL);
        if (way->from < 0) die("accept");
        way->to = dial("127.0.0.1", to);
        pthread_t thread;
        pthread_create(&thread, NULL, relay, way);
        pthread_detach(thread);
    }
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    // A hang is a failure with a name.
    alarm(argc == 5 ? 60 : 600);
    if (argc == 4 && !strcmp(argv[1], "splice")) splice_proxy(atoi(argv[2]), atoi(argv[3]));
    if (argc != 5) return 2;
    int fd = dial(argv[2], atoi(argv[3]));
    if (!strcmp(argv[1], "upload")) return upload(fd, strtoull(argv[4], NULL, 10));
    if (!strcmp(argv[1], "ask")) return ask(fd, atoi(argv[4]));
    if (!strcmp(argv[1], "waitall")) return waitall(fd, atoi(argv[4]));
    if (!strcmp(argv[1], "peek")) return peek(fd, atoi(argv[4]));
    if (!strcmp(argv[1], "fionread")) return fionread(fd, atoi(argv[4]));
    return 2;
}
