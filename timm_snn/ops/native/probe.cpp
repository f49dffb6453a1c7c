// A library of a few lines, with what the others need: OpenMP, and numbers in vectors. Built by why_not_here in build.py.

typedef float floats __attribute__((vector_size(32)));

extern "C" float twice_in_parallel(float x) {
    floats sum = {};
#pragma omp parallel for
    for (int i = 0; i < 8; i++) sum[i] = x;
    return sum[0] + sum[1];
}
