/* One process-wide team of threads for the executor.
 *
 * Callers from any number of Python threads share it: who finds it taken computes alone, so that
 * there are never more busy threads than callers plus the team. Workers spin shortly for the next
 * call and then sleep. Nobody waits for a worker that has not come: one that sleeps, or has lost
 * its core to another process, is late for this call and joins the next. After a fork the child
 * starts with no workers. */
#ifndef CS_TEAM_H
#define CS_TEAM_H

typedef void cs_team_work(void *argument, int rank, int size);

/* Calls work(argument, rank, threads) on the calling thread as rank 0 and on those workers that
 * come before it is done, and returns when all are done: for work that is taken in parts. */
void cs_team_run(int threads, cs_team_work *work, void *argument);

/* Calls work(argument, rank, size) at the same time for each rank below size, which is the number
 * of threads, the caller among them, that came within so many nanoseconds. */
void cs_team_run_together(int threads, long patience, cs_team_work *work, void *argument);

#endif
