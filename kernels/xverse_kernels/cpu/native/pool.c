/* A pool of threads that share out the units of one job at a time.
 *
 * A thread takes a run of units by one compare-and-swap on `ticket` (generation of the job, units
 * left). Whoever holds a run keeps the job alive: the caller waits until all units are reported
 * done, so a thread that sleeps through a job, or is pushed aside by another program, delays it by
 * at most the run it holds. Idle threads spin for a short while, because the next operation of a
 * token follows within microseconds, and then sleep.
 *
 * Where another program takes a core for long, the caller would wait for the thread that lost it in
 * job after job. So the pool notes how long it waits, gives the core up by letting a thread rest,
 * and tries again now and then. */
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
enum { WINDOW = 128, LONGEST_REST = 64 }; /* jobs, and windows of them */

static struct {
    pthread_mutex_t caller; /* one job at a time */
    pthread_mutex_t lock;   /* for sleeping and waking */
    pthread_cond_t wake, rested;
    _Atomic uint64_t ticket;
    _Atomic int left; /* units not yet done */
    _Atomic int sleepers, stopping;
    Work *work;
    const void *job;
    int units;
    _Atomic int longest;
    _Atomic int workers;    /* besides the calling thread */
    _Atomic int active;     /* of them; the others rest */
    int jobs, rest, patience; /* of this window; windows to rest, and of these still to come */
    int64_t worked, waited; /* nanoseconds of this window */
    pthread_t threads[MOST_THREADS];
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .rested = PTHREAD_COND_INITIALIZER};

static struct {
    void *memory;
    size_t bytes;
} kept[SCRATCH_SLOTS];

void *scratch(int slot, size_t bytes) {
    if (kept[slot].bytes < bytes) {
        void *memory = NULL;
        void *outgrown = kept[slot].memory;
        kept[slot].bytes = 0; /* first: a fork may come between */
        kept[slot].memory = NULL;
        free(outgrown);
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
        uint32_t run = remaining / (2 * ((uint32_t)atomic_load(&pool.active) + 1));
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

static int may_work(int number) {
    return number < atomic_load(&pool.active) || atomic_load(&pool.stopping);
}

static void sleep_until_work(int number) {
    pthread_mutex_lock(&pool.lock);
    while (!may_work(number)) pthread_cond_wait(&pool.rested, &pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (may_work(number) && !work_waits()) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void *worker(void *argument) {
    int number = (int)(intptr_t)argument;
    while (!atomic_load(&pool.stopping)) {
        if (!may_work(number)) sleep_until_work(number);
        take_part();
        int64_t until = nanoseconds() + SPIN_NANOSECONDS;
        while (!work_waits() && may_work(number)) {
            for (int look = 0; look < LOOKS && !work_waits(); look++) RELAX();
            if (nanoseconds() > until) sleep_until_work(number);
        }
    }
    return NULL;
}

static void set_active(int active) {
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.active, active);
    pthread_cond_broadcast(&pool.rested);
    pthread_mutex_unlock(&pool.lock);
}

/* After a job: lets a thread rest when a third of a window went by in waiting for others, for ever
 * longer as long as that does not change. */
static void adapt(int64_t worked, int64_t waited) {
    int active = atomic_load(&pool.active);
    pool.worked += worked;
    pool.waited += waited;
    if (++pool.jobs < WINDOW) return;
    if (active && pool.waited * 3 > pool.worked) {
        pool.rest = pool.rest >= LONGEST_REST / 2 ? LONGEST_REST : 2 * pool.rest + 2;
        pool.patience = pool.rest;
        set_active(active - 1);
    } else if (active == pool.workers) {
        pool.rest /= 2;
    } else if (--pool.patience <= 0) {
        pool.patience = pool.rest;
        set_active(active + 1);
    }
    pool.jobs = 0;
    pool.worked = pool.waited = 0;
}

static void wake_sleepers(void) {
    if (!atomic_load(&pool.sleepers)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

static void run_alone(Work *work, const void *job, int units, int longest) {
    for (int first = 0; first < units; first += longest)
        work(job, first, first + longest < units ? first + longest : units);
}

/* Returns the nanoseconds of waiting for threads that something pushed aside: a run takes
 * microseconds otherwise. */
static int64_t run_together(Work *work, const void *job, int units, int longest) {
    pool.work = work;
    pool.job = job;
    pool.units = units;
    atomic_store(&pool.longest, longest);
    atomic_store(&pool.left, units);
    uint64_t generation = (atomic_load(&pool.ticket) >> 32) + 1;
    atomic_store(&pool.ticket, generation << 32 | (uint32_t)units);
    wake_sleepers();
    take_part();
    for (int looks = 0; looks < 1 << 12; looks++) {
        if (!atomic_load_explicit(&pool.left, memory_order_acquire)) return 0;
        RELAX();
    }
    int64_t begun = nanoseconds();
    while (atomic_load_explicit(&pool.left, memory_order_acquire)) sched_yield();
    return nanoseconds() - begun;
}

void pool_run(Work *work, const void *job, int units, int longest) {
    if (units <= 0) return;
    if (longest < 1) longest = 1;
    if (!pool.workers || units == 1) {
        run_alone(work, job, units, longest);
        return;
    }
    int64_t begun = nanoseconds(), waited = 0;
    if (atomic_load(&pool.active)) waited = run_together(work, job, units, longest);
    else run_alone(work, job, units, longest);
    adapt(nanoseconds() - begun, waited);
}

static void stop_workers(void) {
    atomic_store(&pool.stopping, 1);
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_cond_broadcast(&pool.rested);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.workers; i++) pthread_join(pool.threads[i], NULL);
    pool.workers = 0;
    atomic_store(&pool.active, 0);
    atomic_store(&pool.stopping, 0);
}

/* A forked child begins without threads, and with locks that nobody else can hold. */
static void forget_after_fork(void) {
    pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
    pool.caller = pool.lock = unlocked;
    pool.wake = pool.rested = fresh;
    pool.workers = 0;
    atomic_store(&pool.active, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.stopping, 0);
    atomic_store(&pool.ticket, 0);
}

int pool_begin(void) { return pthread_atfork(NULL, NULL, forget_after_fork); }

int pool_resize(int threads) {
    int failed = 0;
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    pool_lock();
    if (threads - 1 != pool.workers) {
        stop_workers();
        while (pool.workers < threads - 1 && !failed) {
            void *number = (void *)(intptr_t)pool.workers;
            failed = pthread_create(&pool.threads[pool.workers], NULL, worker, number);
            if (!failed) pool.workers++;
        }
        pool.jobs = pool.rest = pool.patience = 0;
        pool.worked = pool.waited = 0;
        set_active(pool.workers);
    }
    pool_unlock();
    return failed ? -1 : 0;
}

int pool_threads(void) { return pool.workers + 1; }
void pool_lock(void) { pthread_mutex_lock(&pool.caller); }
void pool_unlock(void) { pthread_mutex_unlock(&pool.caller); }
