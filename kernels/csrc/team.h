/* One process-wide team of threads for the executor.
 *
 * Callers from any number of Python threads share it: who finds it taken computes alone, so that
 * there are never more busy threads than callers plus the team. Workers spin shortly for the next
 * call and then sleep; after a fork the child starts with no workers. */
#ifndef CS_TEAM_H
#define CS_TEAM_H

typedef void cs_team_work(void *argument, int rank, int size);

/* Calls work(argument, rank, size) for each rank below size, rank 0 on the calling thread, and
 * returns when all are done. 1 <= size <= threads: fewer where the team is taken or can't grow. */
void cs_team_run(int threads, cs_team_work *work, void *argument);

#endif
