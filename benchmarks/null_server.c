/* The limit: a server that does nothing. One thread, epoll, and "+OK" to each request in RESP.
 *
 *     null_server PORT
 *
 * It reads just as much of a request as it needs to find the end: "*N", then N times "$length" and so many bytes. What
 * it answers is wrong for most commands, but redis-benchmark counts replies and does not look into them. Only CONFIG
 * gets a list, which redis-benchmark asks for when it begins. What this server takes is what the kernel takes.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define FILES_MAX 4096
#define EVENTS 512
#define RECEIVE_BYTES 65536
#define REPLY_BYTES_MAX 32
#define CONFIG_REPLY "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"

struct parser { /* of one connection */
    long words;   /* that are missing of this request */
    long skip;    /* bytes of a word that are missing, its end of line too */
    long number;  /* that a line gives */
    char kind;    /* of the line: '*' or '$', 0 before it begins */
    int is_first; /* the next word is the first one of its request */
    int is_config;
};

static struct parser parsers[FILES_MAX];
static char input[RECEIVE_BYTES];
static char output[RECEIVE_BYTES / 4 * REPLY_BYTES_MAX];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static size_t answer(const struct parser *p, char *to) {
    const char *reply = p->is_config ? CONFIG_REPLY : "+OK\r\n";
    size_t size = strlen(reply);
    memcpy(to, reply, size);
    return size;
}

/* Take these bytes in; returns the bytes of replies in `output`. */
static size_t take(struct parser *p, const char *data, size_t size) {
    size_t at = 0, made = 0;
    while (at < size) {
        if (p->skip) {
            size_t part = size - at < (size_t)p->skip ? size - at : (size_t)p->skip;
            if (p->is_first) {
                p->is_first = 0;
                p->is_config = part >= 6 && !strncasecmp(data + at, "config", 6);
            }
            at += part;
            p->skip -= (long)part;
            if (!p->skip && !--p->words)
                made += answer(p, output + made);
            continue;
        }
        char byte = data[at++];
        if (!p->kind) {
            if (byte != '*' && byte != '$') {
                fprintf(stderr, "not RESP: byte %d\n", byte);
                exit(1);
            }
            p->kind = byte;
            p->number = 0;
        } else if (byte >= '0' && byte <= '9') {
            p->number = 10 * p->number + (byte - '0');
        } else if (byte == '\n') {
            if (p->kind == '*') {
                p->words = p->number;
                p->is_first = 1;
            } else {
                p->skip = p->number + 2;
            }
            p->kind = 0;
        }
    }
    return made;
}

static void serve(int poll, int file) {
    ssize_t size = read(file, input, sizeof input);
    if (size < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (size <= 0) {
        epoll_ctl(poll, EPOLL_CTL_DEL, file, NULL);
        close(file);
        return;
    }
    size_t made = take(&parsers[file], input, (size_t)size);
    for (size_t sent = 0; sent < made;) {
        ssize_t part = write(file, output + sent, made - sent);
        if (part < 0 && errno != EINTR)
            return; /* the next read says that it is gone */
        if (part > 0)
            sent += (size_t)part;
    }
}

int main(int count, char **words) {
    if (count != 2) {
        fprintf(stderr, "usage: null_server PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        fail("listen");
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &wanted);
    for (;;) {
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int number = 0; number < ready; number++) {
            int file = events[number].data.fd;
            if (file != listener) {
                serve(poll, file);
                continue;
            }
            file = accept(listener, NULL, NULL);
            if (file < 0)
                continue;
            if (file >= FILES_MAX) {
                close(file);
                continue;
            }
            setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            memset(&parsers[file], 0, sizeof parsers[file]);
            wanted.data.fd = file;
            epoll_ctl(poll, EPOLL_CTL_ADD, file, &wanted);
        }
    }
}
