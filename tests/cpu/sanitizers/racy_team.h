/* A team whose barriers do not wait, in place of team.c. */
#ifndef CPU_SANITIZERS_RACY_TEAM_H
#define CPU_SANITIZERS_RACY_TEAM_H

#include <pthread.h>

#include "checks.h"
#include "team.h"

struct racer {
    void (*work)(void *, int, int);
    void *argument;
    int member, members;
    pthread_t thread;
};

static void *race(void *argument) {
    struct racer *racer = argument;
    racer->work(racer->argument, racer->member, racer->members);
    return NULL;
}

void team_run(int threads, void (*work)(void *argument, int member, int members), void *argument) {
    struct racer racers[MOST_THREADS];
    for (int i = 0; i < threads; i++) {
        racers[i] = (struct racer){work, argument, i, threads, 0};
        if (pthread_create(&racers[i].thread, NULL, race, &racers[i])) FAIL("no thread");
    }
    for (int i = 0; i < threads; i++) pthread_join(racers[i].thread, NULL);
}

void barrier_init(struct barrier *barrier) { (void)barrier; }
void barrier_wait(struct barrier *barrier, unsigned members) { (void)barrier, (void)members; }
void team_init(void) {}
const char *team_kind(void) { return "threads"; }

#endif
