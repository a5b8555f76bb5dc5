/* The pool of threads: every unit once, whoever calls, and after a fork. */
#include "native_test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

/* Thread sanitizers and emulators follow no threads into a child. */
#if defined(__SANITIZE_THREAD__) || defined(EMULATED)
enum { FORKS = 0 };
#else
enum { FORKS = 1 };
#endif

typedef struct {
    _Atomic int *done;
    _Atomic int longest;
} Job;

static void work(const void *whole, int first, int last) {
    Job *job = (Job *)whole;
    if (last - first > job->longest) job->longest = last - first;
    for (int unit = first; unit < last; unit++) job->done[unit]++;
}

static int run_once(int units, int longest) {
    Job job = {.done = calloc((size_t)units + 1, sizeof *job.done)};
    pool_lock();
    pool_run(work, &job, units, longest);
    pool_unlock();
    int wrong = job.longest > longest;
    for (int unit = 0; unit < units; unit++) wrong += job.done[unit] != 1;
    free(job.done);
    return wrong;
}

static void *call_often(void *wrong) {
    for (int i = 0; i < 200; i++)
        *(int *)wrong += run_once(1 + i * 37 % 300, 1 + i % 20) + (pool_threads() < 1);
    return NULL;
}

/* Two callers, while a third changes the number of threads and asks for it. */
static void try_callers(void) {
    pthread_t callers[2];
    int wrong[2] = {0};
    begin("pool: two callers");
    for (int i = 0; i < 2; i++) pthread_create(&callers[i], NULL, call_often, &wrong[i]);
    for (int i = 0; i < 20; i++) {
        pool_resize(1 + i % 5);
        check(pool_threads() == 1 + i % 5, "%d threads", pool_threads());
    }
    for (int i = 0; i < 2; i++) pthread_join(callers[i], NULL);
    check(!wrong[0] && !wrong[1], "%d and %d units wrong", wrong[0], wrong[1]);
}

static void try_fork(void) {
    begin("pool: a forked child");
    pool_resize(3);
    run_once(1000, 3);
    fflush(stdout);
    pid_t child = fork();
    if (!child) _exit(run_once(100, 7) || pool_threads() != 1 || pool_resize(3) || run_once(100, 7));
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0, "status %d", status);
}

void test_pool(void) {
    for (int threads = 1; threads < 8; threads++) {
        begin("pool: %d threads", threads);
        check(pool_resize(threads) == 0, "not started");
        for (int i = 0; i < 50; i++) {
            int units = between(0, 400), longest = between(1, 70);
            check(!run_once(units, longest), "%d units in runs of up to %d", units, longest);
        }
    }
    try_callers();
    if (FORKS) try_fork();
}
