/* A pool of threads that share out the units of one job at a time.
 *
 * A thread takes a run of units by one compare-and-swap on `ticket` (generation of the job, units
 * left). Whoever holds a run keeps the job alive: the caller waits until all units are reported
 * done, so a thread that sleeps through a job, or is pushed aside by another program, delays it by
 * at most the run it holds. Idle threads spin for a short while, because the next operation of a
 * token follows within microseconds, and then sleep. */
#include "xverse_cpu.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum { MOST_THREADS = 256, SPIN_NANOSECONDS = 200000, LOOKS = 64 };

static struct {
    pthread_mutex_t caller; /* one job at a time */
    pthread_mutex_t lock;   /* for sleeping and waking */
    pthread_cond_t wake;
    _Atomic uint64_t ticket;
    _Atomic int left; /* units not yet done */
    _Atomic int sleepers, stopping;
    Work *work;
    const void *job;
    int units;
    _Atomic int longest;
    _Atomic int workers; /* besides the calling thread */
    pthread_t threads[MOST_THREADS];
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static struct {
    void *memory;
    size_t bytes;
} kept[SCRATCH_SLOTS];

void *scratch(int slot, size_t bytes) {
    if (kept[slot].bytes < bytes) {
        void *memory = NULL;
        free(kept[slot].memory);
        kept[slot].bytes = 0;
        kept[slot].memory = NULL;
        if (posix_memalign(&memory, 64, bytes)) return NULL;
        kept[slot].memory = memory;
        kept[slot].bytes = bytes;
    }
    return kept[slot].memory;
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Work until no unit is left to take. Large runs first, so that few are split, then ever smaller
 * ones, so that all threads finish together. */
static void take_part(void) {
    uint64_t ticket = atomic_load(&pool.ticket);
    for (;;) {
        uint32_t remaining = (uint32_t)ticket;
        if (!remaining) return;
        uint32_t run = remaining / (2 * ((uint32_t)pool.workers + 1));
        /* `longest` may belong to another job than `ticket`: then the exchange fails. */
        uint32_t longest = (uint32_t)atomic_load_explicit(&pool.longest, memory_order_relaxed);
        run = run > longest ? longest : run ? run : 1;
        if (!atomic_compare_exchange_weak(&pool.ticket, &ticket, ticket - run)) continue;
        int first = pool.units - (int)remaining;
        pool.work(pool.job, first, first + (int)run);
        atomic_fetch_sub(&pool.left, (int)run);
        ticket = atomic_load(&pool.ticket);
    }
}

static int work_waits(void) {
    return (uint32_t)atomic_load(&pool.ticket) || atomic_load(&pool.stopping);
}

static void sleep_until_work(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (!work_waits()) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void *worker(void *unused) {
    (void)unused;
    while (!atomic_load(&pool.stopping)) {
        take_part();
        int64_t until = nanoseconds() + SPIN_NANOSECONDS;
        while (!work_waits()) {
            for (int look = 0; look < LOOKS && !work_waits(); look++) RELAX();
            if (nanoseconds() > until) sleep_until_work();
        }
    }
    return NULL;
}

static void wake_sleepers(void) {
    if (!atomic_load(&pool.sleepers)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

void pool_run(Work *work, const void *job, int units, int longest) {
    if (units <= 0) return;
    if (longest < 1) longest = 1;
    if (!pool.workers || units == 1) {
        for (int first = 0; first < units; first += longest)
            work(job, first, first + longest < units ? first + longest : units);
        return;
    }
    pool.work = work;
    pool.job = job;
    pool.units = units;
    atomic_store(&pool.longest, longest);
    atomic_store(&pool.left, units);
    uint64_t generation = (atomic_load(&pool.ticket) >> 32) + 1;
    atomic_store(&pool.ticket, generation << 32 | (uint32_t)units);
    wake_sleepers();
    take_part();
    /* A run that another thread holds takes microseconds, unless something pushed it aside. */
    for (int looks = 0; atomic_load_explicit(&pool.left, memory_order_acquire); looks++) {
        if (looks < 1 << 14) RELAX();
        else sched_yield();
    }
}

static void stop_workers(void) {
    atomic_store(&pool.stopping, 1);
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.workers; i++) pthread_join(pool.threads[i], NULL);
    pool.workers = 0;
    atomic_store(&pool.stopping, 0);
}

/* A forked child begins without threads, and with locks that nobody else can hold. */
static void forget_after_fork(void) {
    pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
    pool.caller = pool.lock = unlocked;
    pool.wake = fresh;
    pool.workers = 0;
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.stopping, 0);
    atomic_store(&pool.ticket, 0);
}

int pool_resize(int threads) {
    static int watching_forks;
    int failed = 0;
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    pool_lock();
    if (!watching_forks) watching_forks = !pthread_atfork(NULL, NULL, forget_after_fork);
    if (threads - 1 != pool.workers) {
        stop_workers();
        while (pool.workers < threads - 1 && !failed) {
            failed = pthread_create(&pool.threads[pool.workers], NULL, worker, NULL);
            if (!failed) pool.workers++;
        }
    }
    pool_unlock();
    return failed ? -1 : 0;
}

int pool_threads(void) { return pool.workers + 1; }
void pool_lock(void) { pthread_mutex_lock(&pool.caller); }
void pool_unlock(void) { pthread_mutex_unlock(&pool.caller); }
