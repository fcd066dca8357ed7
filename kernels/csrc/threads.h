/* What threads of this process have computed, without opening a file for each. */
#ifndef CS_THREADS_H
#define CS_THREADS_H

#include <stdint.h>

typedef struct {
    int id;             /* the kernel's */
    int64_t ran;        /* nanoseconds of processor time */
} cs_thread_time;

/* Whether a thread may run on this core alone. */
int cs_is_bound(int id, int core);

/* The threads that are bound to the core, at most `room`; how many there are, which may be more.
 * -1 where threads can't be listed; errno says why. */
int cs_bound_times(int core, cs_thread_time *found, int room);

#endif
