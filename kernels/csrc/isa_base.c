/* every x86-64 and AArch64 CPU: SSE2 or NEON */
#define CS_ISA base
#define CS_VL 4
/* widest register tile in pixels, for 1, 2 and 4 output blocks (0: the registers do not hold it) */
#if defined(__aarch64__)    /* 32 registers, of which GCC needs some for the broadcasts */
#define CS_PX1 14
#define CS_PX2 10
#define CS_PX4 4
#else
#define CS_PX1 12
#define CS_PX2 6
#define CS_PX4 0
#endif
/* whether half a vector takes half the time of one */
#define CS_HALF 0
#include "kernels.tmpl.h"
