/* Transposition in registers: CS_VL vectors of CS_VL lanes, by exchanging ever larger squares. */

/* lanes of a and b (CS_VL on) in the order of the constants; gcc before 12 has the first only */
#if defined(__clang__) || __GNUC__ >= 12
#define V_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define V_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

#if CS_VL == 16
#define V_EVEN(a, b) V_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define V_ODD(a, b) V_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define V_LOW1(a, b) V_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define V_HIGH1(a, b) V_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#define V_LOW2(a, b) V_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define V_HIGH2(a, b) V_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define V_LOW4(a, b) V_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define V_HIGH4(a, b) V_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define V_LOW8(a, b) V_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define V_HIGH8(a, b) V_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#elif CS_VL == 8
#define V_EVEN(a, b) V_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define V_ODD(a, b) V_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define V_LOW1(a, b) V_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define V_HIGH1(a, b) V_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
#define V_LOW2(a, b) V_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define V_HIGH2(a, b) V_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define V_LOW4(a, b) V_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define V_HIGH4(a, b) V_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define V_EVEN(a, b) V_SHUFFLE(a, b, 0, 2, 4, 6)
#define V_ODD(a, b) V_SHUFFLE(a, b, 1, 3, 5, 7)
#define V_LOW1(a, b) V_SHUFFLE(a, b, 0, 4, 2, 6)
#define V_HIGH1(a, b) V_SHUFFLE(a, b, 1, 5, 3, 7)
#define V_LOW2(a, b) V_SHUFFLE(a, b, 0, 1, 4, 5)
#define V_HIGH2(a, b) V_SHUFFLE(a, b, 2, 3, 6, 7)
#endif

/* squares of `step` lanes in rows 0 .. rows - 1 */
#define V_EXCHANGE(v, rows, step, low, high)                                                       \
    CS_UNROLL(16) for (int i_ = 0; i_ < rows; i_++) if (!(i_ & step)) {                 \
        const vf a_ = v[i_], b_ = v[i_ + step];                                                    \
        v[i_] = low(a_, b_);                                                                       \
        v[i_ + step] = high(a_, b_);                                                               \
    }

/* Within each half of the lanes: v[i], i < CS_VL / 2, becomes lane i of all rows of the lower half
 * of lanes, then that of the upper half. */
CS_INLINE void v_transpose_halves(vf v[CS_VL]) {
    V_EXCHANGE(v, CS_VL / 2, 1, V_LOW1, V_HIGH1)
#if CS_VL >= 8
    V_EXCHANGE(v, CS_VL / 2, 2, V_LOW2, V_HIGH2)
#endif
#if CS_VL >= 16
    V_EXCHANGE(v, CS_VL / 2, 4, V_LOW4, V_HIGH4)
#endif
}

CS_INLINE void v_transpose(vf v[CS_VL]) {
    V_EXCHANGE(v, CS_VL, 1, V_LOW1, V_HIGH1)
    V_EXCHANGE(v, CS_VL, 2, V_LOW2, V_HIGH2)
#if CS_VL >= 8
    V_EXCHANGE(v, CS_VL, 4, V_LOW4, V_HIGH4)
#endif
#if CS_VL >= 16
    V_EXCHANGE(v, CS_VL, 8, V_LOW8, V_HIGH8)
#endif
}
