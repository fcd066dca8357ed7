/* AVX-512 F, BW, VL, DQ */
#define CS_ISA avx512
#define CS_VL 16
/* widest register tile in pixels, for 1, 2 and 4 output blocks (0: the registers do not hold it) */
#define CS_PX1 14
#define CS_PX2 14
#define CS_PX4 6
/* whether half a vector takes half the time of one */
#define CS_HALF 1
#include "kernels.tmpl.h"
