/* Interrupts threads of this process that keep a core for milliseconds while others wait for it.
 *
 * Linux takes a core away from a thread at its next tick only, up to 4 ms later, unless somebody
 * wakes up who may interrupt it; and what the thread has woken waits on the same core. One thread
 * here looks every few milliseconds for named ones that run so long at a stretch. Where they do so
 * again and again it moves them from their core, `home`, to another one for some seconds, follows
 * them there and wakes up every 0.3 ms: whoever waits there gets his turn then. Its time slice is
 * short, with which the scheduler lets it interrupt others at once (EEVDF, Linux 6.12 and newer).
 *
 * Linux only: elsewhere cs_preempt_start returns NULL. */
#ifndef CS_PREEMPT_H
#define CS_PREEMPT_H

typedef struct cs_preempt cs_preempt;

/* names: beginnings of the threads' names, at most eight and 15 characters each, ended by NULL;
 * NULL is returned where no thread can be started. */
cs_preempt *cs_preempt_start(const char *const *names, int home);

/* The threads are bound to another core from now on. */
void cs_preempt_follow(cs_preempt *p, int home);

/* How many times it has moved them away. */
long cs_preempt_times(const cs_preempt *p);

/* Moves them back and ends, within 50 ms. */
void cs_preempt_stop(cs_preempt *p);

#endif
