// Pass bytes on after a delay, both ways: a database that is far away. One thread; 0.1 ms of a core a save.
// usage: delay PORT SOCKET_PATH MICROSECONDS_EACH_WAY
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct piece { struct piece *next; int64_t due; size_t size; struct end *to; char data[]; };
struct end { int fd; struct end *peer; int closed; };
static struct piece *first, **last = &first;

static int64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

int main(int argc, char **argv) {
    int port = atoi(argv[1]); int64_t delay = atoll(argv[3]) * 1000;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 512)) { perror("bind"); return 1; }
    int ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
    static char buffer[1 << 18];
    struct epoll_event events[128];
    for (;;) {
        struct timespec wait, *timeout = NULL;
        if (first) { int64_t left = first->due - now_ns(); if (left < 0) left = 0; wait.tv_sec = left / 1000000000; wait.tv_nsec = left % 1000000000; timeout = &wait; }
        int n = epoll_pwait2(ep, events, 128, timeout, NULL);
        int64_t now = now_ns();
        for (int i = 0; i < n; i++) {
            struct end *end = events[i].data.ptr;
            if (!end) {
                int c = accept(listener, NULL, NULL); if (c < 0) continue;
                int s = socket(AF_UNIX, SOCK_STREAM, 0);
                struct sockaddr_un u = {.sun_family = AF_UNIX}; strncpy(u.sun_path, argv[2], sizeof u.sun_path - 1);
                if (connect(s, (void *)&u, sizeof u)) { close(c); close(s); continue; }
                setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                struct end *x = calloc(1, sizeof *x), *y = calloc(1, sizeof *y);
                x->fd = c; y->fd = s; x->peer = y; y->peer = x;
                struct epoll_event ex = {.events = EPOLLIN, .data.ptr = x}, ey = {.events = EPOLLIN, .data.ptr = y};
                epoll_ctl(ep, EPOLL_CTL_ADD, c, &ex); epoll_ctl(ep, EPOLL_CTL_ADD, s, &ey);
                continue;
            }
            ssize_t size = recv(end->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            if (size < 0) size = 0;
            if (!size) { epoll_ctl(ep, EPOLL_CTL_DEL, end->fd, NULL); end->closed = 1; }
            struct piece *p = malloc(sizeof *p + size); p->next = NULL; p->due = now + delay; p->size = size; p->to = end->peer;
            memcpy(p->data, buffer, size); *last = p; last = &p->next;
        }
        while (first && first->due <= now) {
            struct piece *p = first; first = p->next; if (!first) last = &first;
            if (!p->size) shutdown(p->to->fd, SHUT_WR);
            else for (size_t done = 0; done < p->size;) {
                ssize_t r = send(p->to->fd, p->data + done, p->size - done, MSG_NOSIGNAL);
                if (r <= 0) break;
                done += r;
            }
            free(p);
        }
    }
}
