// SPDX-License-Identifier: GPL-2.0-only
/* Threads: locks, atomic operations, barriers, and variables that each thread has for itself. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <setjmp.h>

#include "check.h"

#define THREADS 4
#define ROUNDS 10000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t barrier;
static long locked, atomic, meetings;
static __thread int own = 42;

static void *work(void *unused)
{
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        locked++;
        pthread_mutex_unlock(&lock);
        __atomic_fetch_add(&atomic, 1, __ATOMIC_SEQ_CST);
        own++;
        if (i % 500 == 0)
            sched_yield();
    }
    for (int i = 0; i < 100; i++)
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
            __atomic_fetch_add(&meetings, 1, __ATOMIC_SEQ_CST);
    check(own == 42 + ROUNDS, "a thread's own variable is %d", own);
    return unused;
}

static void run_threads(void)
{
    pthread_t threads[THREADS];

    pthread_barrier_init(&barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        check(pthread_create(&threads[i], NULL, work, NULL) == 0, "pthread_create");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    check(locked == THREADS * ROUNDS, "%ld increments under a lock", locked);
    check(atomic == THREADS * ROUNDS, "%ld atomic increments", atomic);
    check(meetings == 100, "%ld meetings at the barrier", meetings);
    check(own == 42, "the first thread's own variable is %d", own);
}

static sigjmp_buf back;

static void handler(int signal)
{
    siglongjmp(back, signal);
}

static void faults_and_jumps(void)
{
    signal(SIGSEGV, handler);
    for (volatile int i = 0; i < 500; i++) {
        int got = sigsetjmp(back, 1);

        if (got == 0)
            *(volatile int *)(uintptr_t)8 = 1;
        check(got == SIGSEGV, "back with %d", got);
    }
    signal(SIGSEGV, SIG_DFL);
}

int main(void)
{
    run_threads();
    faults_and_jumps();
    return verdict("threads");
}
