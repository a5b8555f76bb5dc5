/* The Python module: numbers in, addresses of tensors among them; the caller checks them. */
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "xverse_cpu.h"

static const Kernels *chosen;

typedef const Kernels *Finder(void);
static Finder *const finders[] = {avx512_kernels, avxvnni_kernels, avx2_kernels, neon_kernels,
                                  portable_kernels};
enum { FINDERS = sizeof finders / sizeof *finders, MOST_NUMBERS = 32 };

static const Kernels *best(void) {
    for (int i = 0; i < FINDERS; i++)
        if (finders[i]()) return finders[i]();
    return NULL;
}

/* `count` integers into `out`; -1 with an error set. */
static int read_numbers(PyObject *const *args, Py_ssize_t given, Py_ssize_t count, int64_t *out) {
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", count, given);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        out[i] = PyLong_AsLongLong(args[i]);
        if (out[i] == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

#define ADDRESS(number) ((void *)(intptr_t)(number))

static PyObject *finish(int failed) {
    if (failed < 0) {
        PyErr_SetString(PyExc_LookupError, "an expert that has no block here");
        return NULL;
    }
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* linear(x, norm, residual, out, tokens, columns, eps, (data, bias, rows, form) ...) */
static PyObject *py_linear(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t n[6 + 4 * MATRICES];
    Py_ssize_t numbers = given - 1;
    if (numbers < 10 || (numbers - 6) % 4 || numbers > 6 + 4 * MATRICES) {
        PyErr_SetString(PyExc_TypeError, "eps, 6 numbers and 4 for each of up to 4 matrices");
        return NULL;
    }
    double eps = PyFloat_AsDouble(args[0]);
    if (PyErr_Occurred() || read_numbers(args + 1, numbers, numbers, n)) return NULL;
    Linear call = {.x = ADDRESS(n[0]), .norm = ADDRESS(n[1]), .residual = ADDRESS(n[2]),
                   .out = ADDRESS(n[3]), .tokens = (int)n[4], .columns = (int)n[5],
                   .eps = (float)eps, .count = (int)(numbers - 6) / 4};
    for (int m = 0; m < call.count; m++) {
        const int64_t *of = n + 6 + 4 * m;
        call.matrices[m] =
            (Matrix){ADDRESS(of[0]), ADDRESS(of[1]), (int)of[2], (Form)of[3]};
    }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = chosen->linear(&call);
    Py_END_ALLOW_THREADS
    return finish(failed);
}

/* experts(x, weights, residual, ids, out, parts, blocks, table, block_bytes, tokens, slots,
 *         experts, hidden, width, form) */
static PyObject *py_experts(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t n[15];
    if (read_numbers(args, given, 15, n)) return NULL;
    Experts call = {ADDRESS(n[0]), ADDRESS(n[1]), ADDRESS(n[2]), ADDRESS(n[3]), ADDRESS(n[4]),
                    ADDRESS(n[5]), ADDRESS(n[6]), ADDRESS(n[7]), (size_t)n[8], (int)n[9],
                    (int)n[10], (int)n[11], (int)n[12], (int)n[13], (Form)n[14]};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = chosen->experts(&call);
    Py_END_ALLOW_THREADS
    return finish(failed);
}

/* route(eps, x, norm, router, normed, logits, weights, ids, tokens, hidden, experts, top_k,
 *       shared) */
static PyObject *py_route(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t n[12];
    double eps = given ? PyFloat_AsDouble(args[0]) : 0.0;
    if (PyErr_Occurred() || read_numbers(args + 1, given - 1, 12, n)) return NULL;
    Route call = {ADDRESS(n[0]), ADDRESS(n[1]), ADDRESS(n[2]), ADDRESS(n[3]), ADDRESS(n[4]),
                  ADDRESS(n[5]), ADDRESS(n[6]), (float)eps, (int)n[7], (int)n[8], (int)n[9],
                  (int)n[10], (int)n[11]};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = chosen->route(&call);
    Py_END_ALLOW_THREADS
    return finish(failed);
}

/* attend(qkv, cos, sin, keys, values, key_scales, value_scales, sequences, positions, out, capacity,
 *        tokens, heads, kv_heads, dim, cache_bits, sequence, past) */
static PyObject *py_attend(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t n[18];
    if (read_numbers(args, given, 18, n)) return NULL;
    Attend call = {ADDRESS(n[0]), ADDRESS(n[1]), ADDRESS(n[2]), ADDRESS(n[3]), ADDRESS(n[4]),
                   ADDRESS(n[5]), ADDRESS(n[6]), ADDRESS(n[7]), ADDRESS(n[8]), ADDRESS(n[9]),
                   n[10], (int)n[11], (int)n[12], (int)n[13], (int)n[14], (int)n[15], (int)n[16],
                   (int)n[17]};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = chosen->attend(&call);
    Py_END_ALLOW_THREADS
    return finish(failed);
}

/* read(data, bytes): every byte once, on all threads. */
static PyObject *py_read(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t n[2];
    if (read_numbers(args, given, 2, n)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    chosen->read_through(ADDRESS(n[0]), (size_t)n[1]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* names(): the instruction sets that this processor can run, the best first. */
static PyObject *py_names(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *names = PyList_New(0);
    for (int i = 0; names && i < FINDERS; i++) {
        const Kernels *kernels = finders[i]();
        PyObject *name = kernels ? PyUnicode_FromString(kernels->name) : NULL;
        if (!kernels) continue;
        if (!name || PyList_Append(names, name)) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

/* use(name): compute with these instructions; ValueError when the processor lacks them. */
static PyObject *py_use(PyObject *self, PyObject *name) {
    (void)self;
    for (int i = 0; i < FINDERS; i++) {
        const Kernels *kernels = finders[i]();
        if (!kernels || PyUnicode_CompareWithASCIIString(name, kernels->name)) continue;
        chosen = kernels;
        Py_RETURN_NONE;
    }
    return PyErr_Format(PyExc_ValueError, "this processor has no %U", name);
}

/* set_threads(count): how many compute, the caller among them; OSError when none can start. */
static PyObject *py_set_threads(PyObject *self, PyObject *count) {
    (void)self;
    long threads = PyLong_AsLong(count);
    if (PyErr_Occurred()) return NULL;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = pool_resize(threads > INT16_MAX ? INT16_MAX : (int)threads);
    Py_END_ALLOW_THREADS
    if (failed) {
        PyErr_SetString(PyExc_OSError, "the system starts no further thread");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_threads(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    return PyLong_FromLong(pool_threads());
}

#define FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL
static PyMethodDef methods[] = {{"linear", FAST(py_linear), NULL},
                                {"experts", FAST(py_experts), NULL},
                                {"route", FAST(py_route), NULL},
                                {"attend", FAST(py_attend), NULL},
                                {"read", FAST(py_read), NULL},
                                {"names", py_names, METH_NOARGS, NULL},
                                {"use", py_use, METH_O, NULL},
                                {"set_threads", py_set_threads, METH_O, NULL},
                                {"threads", py_threads, METH_NOARGS, NULL},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    if (pool_begin()) return PyErr_NoMemory();
    chosen = best();
    return PyModule_Create(&definition);
}
