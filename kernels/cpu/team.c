#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "team.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum { SPINS = 1024, MAX_STARTED = 256 };

/* Sleep while *word is `value`, or a little less long; the core is somebody else's meanwhile. */
#if defined(__linux__)
static void sleep_while(atomic_uint *word, unsigned value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void wake_all(atomic_uint *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }
#else
static void sleep_while(atomic_uint *word, unsigned value) { (void)word, (void)value, sched_yield(); }
static void wake_all(atomic_uint *word) { (void)word; }
#endif

void barrier_init(struct barrier *barrier) {
    atomic_init(&barrier->arrived, 0);
    atomic_init(&barrier->passed, 0);
    atomic_init(&barrier->asleep, 0);
}

void barrier_wait(struct barrier *barrier, unsigned members) {
    if (members < 2) return;
    unsigned round = atomic_load_explicit(&barrier->passed, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1 == (round + 1) * members) {
        /* In one order with the other side's two: it is seen asleep here, or does not fall asleep. */
        atomic_store_explicit(&barrier->passed, round + 1, memory_order_seq_cst);
        if (atomic_load_explicit(&barrier->asleep, memory_order_seq_cst)) wake_all(&barrier->passed);
        return;
    }
    for (unsigned spins = 0; spins < SPINS; spins++) {
        if (atomic_load_explicit(&barrier->passed, memory_order_acquire) != round) return;
        RELAX();
    }
    /* Somebody else may have the core that the last member needs. */
    atomic_fetch_add_explicit(&barrier->asleep, 1, memory_order_seq_cst);
    while (atomic_load_explicit(&barrier->passed, memory_order_seq_cst) == round) sleep_while(&barrier->passed, round);
    atomic_fetch_sub_explicit(&barrier->asleep, 1, memory_order_relaxed);
}

/* How a thread rounds, and whether it flushes subnormal numbers to zero (torch.set_flush_denormal): a state of each
   thread. All members of a team compute as the thread that called it, or results would depend on their number. */
#if defined(__x86_64__)
typedef unsigned int control_word;
enum { STATUS = 0x3f }; /* what has happened so far, not what will */
static control_word control(void) { return __builtin_ia32_stmxcsr() & ~(unsigned)STATUS; }
static void set_control(control_word word) { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
typedef uint64_t control_word;
static control_word control(void) {
    control_word word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
}
static void set_control(control_word word) { __asm__ volatile("msr fpcr, %0" : : "r"(word)); }
#else
typedef int control_word;
static control_word control(void) { return 0; }
static void set_control(control_word word) { (void)word; }
#endif

struct team {
    void (*work)(void *, int, int);
    void *argument;
    int members;
    control_word control; /* of the caller */
};

/* A member's work, with the caller's control word for as long as it takes. */
static void run_member(const struct team *team, int number, int members) {
    const control_word own = control();
    if (own != team->control) set_control(team->control);
    team->work(team->argument, number, members);
    if (own != team->control) set_control(own);
}

struct member {
    struct team *team;
    int number;
    pthread_t thread;
};

/* libgomp's entry point, which LLVM's runtime has too. */
typedef void (*parallel_fn)(void (*)(void *), void *, unsigned threads, unsigned flags);
typedef int (*number_fn)(void);

struct openmp {
    parallel_fn parallel;
    number_fn member, members;
};

static struct openmp openmp; /* written by team_init alone, before there is a second thread of ours */

void team_init(void) {
    struct openmp found;
    /* POSIX converts the pointers this way. */
    *(void **)&found.parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&found.member = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    *(void **)&found.members = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
    if (found.parallel && found.member && found.members) openmp = found;
}

static void openmp_member(void *argument) {
    struct team *team = argument;
    run_member(team, openmp.member(), openmp.members());
}

static void *started_member(void *argument) {
    struct member *member = argument;
    run_member(member->team, member->number, member->team->members);
    return NULL;
}

/* Members must not run before it is known how many there are: work waits for all of them. */
struct gate {
    struct member member;
    pthread_mutex_t *mutex;
    pthread_cond_t *open;
    int *ready;
};

static void *gated_member(void *argument) {
    struct gate *gate = argument;
    pthread_mutex_lock(gate->mutex);
    while (!*gate->ready) pthread_cond_wait(gate->open, gate->mutex);
    pthread_mutex_unlock(gate->mutex);
    return started_member(&gate->member);
}

static void run_started(struct team *team, int threads) {
    if (threads > MAX_STARTED) threads = MAX_STARTED;
    struct gate gates[MAX_STARTED];
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t open = PTHREAD_COND_INITIALIZER;
    int ready = 0, members = 1;
    for (; members < threads; members++) {
        gates[members] = (struct gate){{team, members, 0}, &mutex, &open, &ready};
        if (pthread_create(&gates[members].member.thread, NULL, gated_member, &gates[members])) break;
    }
    team->members = members;
    pthread_mutex_lock(&mutex);
    ready = 1;
    pthread_cond_broadcast(&open);
    pthread_mutex_unlock(&mutex);
    run_member(team, 0, members);
    for (int i = 1; i < members; i++) pthread_join(gates[i].member.thread, NULL);
}

void team_run(int threads, void (*work)(void *, int, int), void *argument) {
    struct team team = {work, argument, 1, control()};
    if (threads < 2) {
        work(argument, 0, 1);
        return;
    }
    if (openmp.parallel)
        openmp.parallel(openmp_member, &team, (unsigned)threads, 0);
    else
        run_started(&team, threads);
}

const char *team_kind(void) { return openmp.parallel ? "openmp" : "threads"; }
