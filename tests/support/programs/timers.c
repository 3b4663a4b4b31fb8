// SPDX-License-Identifier: GPL-2.0-only
/*
 * Time: no clock goes backwards, on one CPU or from one to the other; timers and sleeps are never early; the
 * clocks agree with each other.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "check.h"

static int64_t read_clock(clockid_t which)
{
    struct timespec time;

    clock_gettime(which, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void clocks_agree(void)
{
    int64_t last = 0, offset = 0;

    for (int i = 0; i < 2000; i++) {
        int64_t monotonic = read_clock(CLOCK_MONOTONIC), boot = read_clock(CLOCK_BOOTTIME);
        int64_t real = read_clock(CLOCK_REALTIME), again = read_clock(CLOCK_MONOTONIC);

        check(monotonic >= last && again >= monotonic, "monotonic: %lld, %lld, %lld", (long long)last,
              (long long)monotonic, (long long)again);
        check(boot >= monotonic, "boot time %lld is before monotonic %lld", (long long)boot,
              (long long)monotonic);
        check(llabs(time(NULL) - real / 1000000000) <= 1, "time() and CLOCK_REALTIME differ");
        if (i == 0)
            offset = real - monotonic;
        check(real - again <= offset + 100000000 && real - monotonic >= offset - 100000000,
              "real time jumped by %lld ns", (long long)(real - monotonic - offset));
        last = again;
    }
}

static void periodic_timer(void)
{
    const struct itimerspec ten_ms = {{0, 10000000}, {0, 10000000}};
    int timer = must(timerfd_create(CLOCK_MONOTONIC, 0));
    uint64_t total = 0, expired;
    double begin = now(), took;

    must(timerfd_settime(timer, 0, &ten_ms, NULL));
    for (; total < 50; total += expired)
        must(read(timer, &expired, sizeof expired));
    took = now() - begin;
    check(took >= 0.01 * total - 1e-4, "%d periods of 10 ms took %.4f s: early", (int)total, took);
    check(took < 0.01 * total + 0.5, "%d periods of 10 ms took %.4f s: late", (int)total, took);
    close(timer);
}

static void sleeps(void)
{
    for (int i = 0; i < 50; i++) {
        double begin = now(), took;

        usleep(2000);
        took = now() - begin;
        check(took >= 0.002, "a sleep of 2 ms took %.6f s", took);
        check(took < 0.5, "a sleep of 2 ms took %.3f s", took);
    }
}

/* What two threads on two CPUs pass to each other: the latest time that either has seen. */
struct seen {
    uint64_t tsc;
    int64_t time;
};

static int ways[2][2]; /* pipes to each of the two */

static void *look_in_turn(void *number)
{
    const int me = (int)(intptr_t)number;
    struct seen last;
    cpu_set_t cpu;

    CPU_ZERO(&cpu);
    CPU_SET(me, &cpu);
    must(sched_setaffinity(0, sizeof cpu, &cpu));
    for (int i = 0; i < 500; i++) {
        uint32_t low, high;
        struct seen now;

        must(read(ways[me][0], &last, sizeof last));
        asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
        now.tsc = (uint64_t)high << 32 | low;
        now.time = read_clock(CLOCK_MONOTONIC);
        check(now.tsc >= last.tsc, "CPU %d: the TSC went back by %lld", me, (long long)(last.tsc - now.tsc));
        check(now.time >= last.time, "CPU %d: the clock went back by %lld ns", me,
              (long long)(last.time - now.time));
        must(write(ways[!me][1], &now, sizeof now));
    }
    return NULL;
}

static void from_cpu_to_cpu(void)
{
    const struct seen nothing = {0};
    pthread_t threads[2];

    if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
        return;
    must(pipe(ways[0]));
    must(pipe(ways[1]));
    for (intptr_t i = 0; i < 2; i++)
        check(pthread_create(&threads[i], NULL, look_in_turn, (void *)i) == 0, "pthread_create");
    must(write(ways[0][1], &nothing, sizeof nothing));
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

int main(void)
{
    clocks_agree();
    periodic_timer();
    sleeps();
    from_cpu_to_cpu();
    return verdict("timers");
}
