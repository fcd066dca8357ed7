"""The process's one team of threads (csrc/team.h), for other compiled modules."""


# Calls work(argument, rank, threads) on the calling thread and on those of the team that come.
cdef void run_on_team(int threads, void (*work)(void *argument, int rank, int size) noexcept nogil,
                      void *argument) noexcept nogil
