/* AVX2 with FMA */
#define CS_ISA avx2
#define CS_VL 8
/* widest register tile in pixels, for 1, 2 and 4 output blocks (0: the registers do not hold it) */
#define CS_PX1 12
#define CS_PX2 6
#define CS_PX4 0
/* whether half a vector takes half the time of one */
#define CS_HALF 0
#include "kernels.tmpl.h"
