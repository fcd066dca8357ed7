/* Matrix products for affine layers: forward, the input's gradient and the weights' gradient are one
 * kernel with other steps. A tile of rows x vectors of columns stays in registers over all of `depth`. */
#include "train_kernels.h"

#if CS_PX4 && CS_VL == 16
#define CS_GEMM_ROWS 8
#define CS_GEMM_VECTORS 3
#else
#define CS_GEMM_ROWS 4
#define CS_GEMM_VECTORS 2
#endif

/* lanes: of the last vector that may be written */
CS_INLINE void gemm_tile(const int rows, const int vectors, const cs_gemm *p, int lanes,
                         const float *a, const float *b, const float *start, float *c) {
    vf acc[CS_GEMM_ROWS][CS_GEMM_VECTORS];
CS_UNROLL(8)
    for (int r = 0; r < rows; r++)
CS_UNROLL(4)
        for (int v = 0; v < vectors; v++)
            acc[r][v] = start ? v_load(start + v * CS_VL) : (vf){0};
    for (int64_t k = 0; k < p->depth; k++) {
        vf bv[CS_GEMM_VECTORS];
CS_UNROLL(4)
        for (int v = 0; v < vectors; v++)
            bv[v] = v_load(b + k * p->b_step + v * CS_VL);
CS_UNROLL(8)
        for (int r = 0; r < rows; r++) {
            const vf av = v_set(a[r * p->a_row + k * p->a_step]);
CS_UNROLL(4)
            for (int v = 0; v < vectors; v++)
                acc[r][v] += av * bv[v];
        }
    }
CS_UNROLL(8)
    for (int r = 0; r < rows; r++)
CS_UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            float *to = c + r * p->c_row + v * CS_VL;
            const int part = v == vectors - 1 && lanes < CS_VL;
            if (p->add)
                acc[r][v] += part ? v_load_part(to, lanes, (vf){0}) : v_load(to);
            if (part) {
                float last[CS_VL];
                v_store(last, acc[r][v]);
                memcpy(to, last, sizeof(float) * lanes);
            } else {
                v_store(to, acc[r][v]);
            }
        }
}

#define CS_GEMM_CASE(rows, vectors)                                                                \
    case rows:                                                                                     \
        gemm_tile(rows, vectors, p, lanes, a + r * p->a_row, b, start, c + r * p->c_row);          \
        break;

#if CS_GEMM_ROWS == 8
#define CS_GEMM_CASES(vectors)                                                                     \
    CS_GEMM_CASE(8, vectors) CS_GEMM_CASE(7, vectors) CS_GEMM_CASE(6, vectors) CS_GEMM_CASE(5, vectors)
#else
#define CS_GEMM_CASES(vectors)
#endif

/* all rows of a few vectors of columns */
#define CS_GEMM_COLUMNS(vectors)                                                                   \
    static void gemm_columns_##vectors(const cs_gemm *p, int lanes, const float *a, const float *b, \
                                       const float *start, float *c) {                             \
        for (int64_t r = 0; r < p->rows; r += CS_GEMM_ROWS)                                        \
            switch (p->rows - r < CS_GEMM_ROWS ? p->rows - r : CS_GEMM_ROWS) {                     \
                CS_GEMM_CASES(vectors)                                                             \
                CS_GEMM_CASE(4, vectors)                                                           \
                CS_GEMM_CASE(3, vectors)                                                           \
                CS_GEMM_CASE(2, vectors)                                                           \
                CS_GEMM_CASE(1, vectors)                                                           \
            }                                                                                      \
    }

CS_GEMM_COLUMNS(1)
CS_GEMM_COLUMNS(2)
#if CS_GEMM_VECTORS == 3
CS_GEMM_COLUMNS(3)
#endif

static void gemm(const cs_gemm *p, const float *a, const float *b, const float *start, float *c) {
    for (int64_t j = 0; j < p->columns; j += CS_GEMM_VECTORS * CS_VL) {
        const int64_t left = p->columns - j;
        const int64_t vectors = left < CS_GEMM_VECTORS * CS_VL ? (left + CS_VL - 1) / CS_VL : CS_GEMM_VECTORS;
        const int64_t rest = left - (vectors - 1) * CS_VL;
        const int lanes = p->exact && rest < CS_VL ? (int)rest : CS_VL;
        const float *bj = b + j, *from = start ? start + j : NULL;
        float *cj = c + j;
        switch (vectors) {
        case 1: gemm_columns_1(p, lanes, a, bj, from, cj); break;
#if CS_GEMM_VECTORS == 3
        case 3: gemm_columns_3(p, lanes, a, bj, from, cj); break;
#endif
        default: gemm_columns_2(p, lanes, a, bj, from, cj);
        }
    }
}
