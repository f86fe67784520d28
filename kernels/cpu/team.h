/* A team of threads, and a barrier for groups of them. */
#ifndef FASTCELLS_TEAM_H
#define FASTCELLS_TEAM_H

#include <stdatomic.h>

#define CACHE_LINE 64

/* Monotonic: `arrived` and `passed` never go back, so that nothing has to be reset between two steps. */
struct barrier {
    _Alignas(CACHE_LINE) atomic_uint arrived;
    _Alignas(CACHE_LINE) atomic_uint passed;
    atomic_uint asleep; /* members that the last one has to wake */
};

void barrier_init(struct barrier *barrier);
void barrier_wait(struct barrier *barrier, unsigned members);

/* Look for an OpenMP runtime in the process; once, before the first team runs. */
void team_init(void);

/* Call work(argument, member, members) on `members` threads at once, `members` being at most `threads`: the OpenMP
   runtime that torch has loaded lends its pool, so that two pools do not fight for the cores. Where team_init found
   none, threads are started for the call. Returns when all are done. */
void team_run(int threads, void (*work)(void *argument, int member, int members), void *argument);

/* "openmp", or "threads" where no OpenMP runtime is loaded. */
const char *team_kind(void);

#endif
