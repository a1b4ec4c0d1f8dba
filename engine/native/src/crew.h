/* A crew of threads that run the same program: work is taken item by item, phases end at a gate.
 *
 * Items are taken from a counter and not dealt out, so that a thread that the system holds up holds up
 * one item. Who waits at a gate spins for a moment, then yields, then sleeps: the machine's other
 * programs (the server's own event loop among them) want the same few cores.
 *
 * A crew as large as the number of cores has a core for each: otherwise a program that wakes up for a
 * moment moves a thread over to another's core, where both stay, taking turns at every gate (seen: five
 * times the time for a step, for tens of milliseconds).
 */
#pragma once
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "simd.h"

#define SPINS 4000
#define YIELDS 60

typedef struct crew crew;
typedef void (*program)(void *what, int thread);

struct crew {
    int threads, wanted;
    program run;
    void *what;
    _Alignas(64) atomic_int job;     /* number of the program * 256 + how many take part: the first ones */
    _Alignas(64) atomic_int arrived; /* at the gate */
    _Alignas(64) atomic_int gate;    /* counts gates passed */
    atomic_int sleepers, ending;
    int active;                      /* threads that take part in this program */
    int64_t waited_ns;               /* how long thread 0 stood at gates in it */
    atomic_int *items; /* a counter for each phase and thread, each on a line of its own */
    int phases;
    pthread_t handles[64];
};

static void doze(atomic_int *word, int seen) {
    syscall(SYS_futex, (int *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
static void rouse(atomic_int *word) { syscall(SYS_futex, (int *)word, FUTEX_WAKE_PRIVATE, 1 << 20, NULL, NULL, 0); }

/* Until `word` is no longer `seen`. */
static void await(crew *c, atomic_int *word, int seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
        _mm_pause();
    }
    for (int i = 0; i < YIELDS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
        sched_yield();
    }
    atomic_fetch_add(&c->sleepers, 1);
    while (atomic_load(word) == seen) doze(word, seen);
    atomic_fetch_sub(&c->sleepers, 1);
}

static void change(crew *c, atomic_int *word, int by) {
    atomic_fetch_add(word, by);
    if (atomic_load(&c->sleepers)) rouse(word);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* All threads that take part, or none, are behind this line. */
static void gate(crew *c, int thread) {
    if (c->active == 1) return;
    const int seen = atomic_load_explicit(&c->gate, memory_order_acquire);
    const int others = c->active - 1; /* read first: behind the last gate the next program may change it */
    if (atomic_fetch_add(&c->arrived, 1) == others) {
        atomic_store(&c->arrived, 0);
        change(c, &c->gate, 1);
    } else {
        const int64_t from = thread ? 0 : now_ns();
        await(c, &c->gate, seen);
        if (!thread) c->waited_ns += now_ns() - from;
    }
}

/* The next of a phase's `items`, or -1. A thread has a run of them, whose weights lie side by side, and
 * when it is through with that it takes from the others' runs. */
static inline int take(crew *c, int phase, int items, int thread) {
    for (int i = 0, whose = thread; i < c->active; i++, whose = whose + 1 < c->active ? whose + 1 : 0) {
        const int first = items * whose / c->active, last = items * (whose + 1) / c->active;
        atomic_int *next = &c->items[16 * (phase * c->active + whose)];
        if (first + atomic_load_explicit(next, memory_order_relaxed) >= last) continue;
        const int item = first + atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
        if (item < last) return item;
    }
    return -1;
}

/* Keep this thread on the core of its number, if the crew has all cores there are. */
static void bind_thread(const crew *c, int thread) {
    cpu_set_t usable, mine;
    if (sched_getaffinity(getpid(), sizeof usable, &usable) || CPU_COUNT(&usable) != c->wanted) return;
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &usable) && seen++ == thread) {
            CPU_ZERO(&mine);
            CPU_SET(cpu, &mine);
            sched_setaffinity(0, sizeof mine, &mine);
        }
}

typedef struct { crew *c; int thread; } member;

static void *member_main(void *argument) {
    member me = *(member *)argument;
    free(argument);
    crew *c = me.c;
    bind_thread(c, me.thread);
    for (int seen = 0;;) {
        await(c, &c->job, seen);
        seen = atomic_load(&c->job);
        if (atomic_load(&c->ending)) return NULL;
        if (me.thread >= (seen & 255)) continue; /* a program of fewer; it may be over already */
        c->run(c->what, me.thread);
        gate(c, me.thread);
    }
}

/* Run a program in the first `active` threads, this one among them. */
static void crew_run(crew *c, program run, void *what, int active) {
    c->active = active < 1 ? 1 : active > c->threads ? c->threads : active;
    for (int i = 0; i < c->phases * c->active; i++) atomic_store_explicit(&c->items[16 * i], 0, memory_order_relaxed);
    c->run = run;
    c->what = what;
    c->waited_ns = 0;
    if (c->active > 1) change(c, &c->job, 256 - (atomic_load(&c->job) & 255) + c->active);
    run(what, 0);
    gate(c, 0);
}

static int crew_start(crew *c, int threads, int phases) {
    memset(c, 0, sizeof *c);
    c->phases = phases;
    c->wanted = threads;
    c->items = aligned_alloc(64, (size_t)phases * threads * 64);
    if (!c->items) return -1;
    for (c->threads = 1; c->threads < threads; c->threads++) {
        member *me = malloc(sizeof *me);
        if (!me) return -1;
        *me = (member){c, c->threads};
        if (pthread_create(&c->handles[c->threads], NULL, member_main, me)) {
            free(me);
            return -1;
        }
    }
    return 0;
}

static void crew_end(crew *c) {
    atomic_store(&c->ending, 1);
    change(c, &c->job, 256);
    for (int i = 1; i < c->threads; i++) pthread_join(c->handles[i], NULL);
    free(c->items);
}
