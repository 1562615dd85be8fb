// SPDX-License-Identifier: Apache-2.0
// Resolves names as applications do: with getaddrinfo() of the C library.
//
//   resolve NAME...   prints `NAME: ADDRESS...` for each, addresses sorted, or `NAME: error TEXT`
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int compare(const void *a, const void *b) { return strcmp(a, b); }

static void resolve(const char *name) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found, *next;
    char texts[128][INET6_ADDRSTRLEN];
    size_t count = 0;
    int error = getaddrinfo(name, NULL, &hints, &found);
    printf("%s:", name);
    if (error) {
        printf(" error %s\n", gai_strerror(error));
        return;
    }
    for (next = found; next && count < 128; next = next->ai_next, count++) {
        const void *address = next->ai_family == AF_INET
            ? (const void *)&((struct sockaddr_in *)next->ai_addr)->sin_addr
            : (const void *)&((struct sockaddr_in6 *)next->ai_addr)->sin6_addr;
        inet_ntop(next->ai_family, address, texts[count], sizeof texts[count]);
    }
    freeaddrinfo(found);
    qsort(texts, count, sizeof texts[0], compare);
    for (size_t at = 0; at < count; at++)
        printf(" %s", texts[at]);
    printf("\n");
}

int main(int argc, char **argv) {
    for (int at = 1; at < argc; at++)
        resolve(argv[at]);
    return 0;
}
